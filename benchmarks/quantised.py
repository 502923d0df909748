"""Sub-models found on int8 weights or on others, and the order of pruning and quantisation.

    python -m benchmarks.quantised --algorithm one-shot --genes heads+channels \
        --sparsity_of parameters --max_sparsity 0.2 --samples 4 --seqlen 64 --heldout_samples 64 \
        --output benchmarks/results/quantised_tiny.json
    python -m benchmarks.quantised --model gemma-3-270m --dataset DATA/wikitext-2 --rank wanda \
        --genes heads+channels --channel_blocks 8 --sparsity_of parameters --max_sparsity 0.1 \
        --samples 8 --seqlen 512 --score_every 4 --heldout_samples 8 --no_bfloat16 --seeds 1 \
        --output benchmarks/results/quantised_gemma.json

For each seed, a search on the weights as stored and one on int8 weights remove the same share of
the parameters. Both sub-models are sliced, and their held-out perplexity is computed in float32, in
bfloat16, with int8 weights that were quantised before slicing (quantise, then prune), and with int8
weights that were quantised after it (prune, then quantise), whose scales are those of the kept
columns. ``--rank`` takes one ranking of the genes in place of a search. ``--no_bfloat16`` leaves
bfloat16 out, which takes many minutes on a CPU without it.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sos_deap import prune
from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.config import parse
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.files.atomic import write_json
from sos_deap.models.quantised import check_torchao, weight_bytes
from sos_deap.plan import evaluator_of, plan_of, search, toolbox_of

#: Weights on which sub-models are found.
FOUND_ON = ("none", "int8")


def sub_model(flags: list[str], quantize: str, rank: str | None) -> tuple[Evaluator, list[int]]:
    """Find a sub-model.

    :param flags: flags of a run.
    :param quantize: the quantisation of the model that is searched.
    :param rank: name of an importance; default: a search.
    :returns: the evaluator, and the chromosome.
    """
    plan = plan_of(*parse([*flags, f"--quantize={quantize}", "--dtype=float32"]))
    evaluator = evaluator_of(plan)
    toolbox = toolbox_of(plan, evaluator)
    if rank is None:
        return evaluator, list(search(plan, evaluator, toolbox=toolbox).halloffame[0])
    space = toolbox.search.space
    return evaluator, list(space.keeping_best(space.importance(rank)))


def quantised_copy(model: Any) -> Any:
    """Return a copy of a model whose linear layers, except the output layer, are quantised."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    head, copied = model.get_output_embeddings(), copy.deepcopy(model)
    linear = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and module.weight.numel()
    }
    quantize_(copied, Int8WeightOnlyConfig(), filter_fn=lambda _, path: path in linear)
    return copied


def forms_of(
    plain: Evaluator, int8: Evaluator, genes: list[int], order: Any, bfloat16: bool
) -> dict[str, Any]:
    """Return a sub-model with each kind of weights.

    :param plain: the evaluator of the model as stored, in float32.
    :param int8: the evaluator of the model with int8 weights.
    :param genes: the chromosome.
    :param order: the gene map that it was found with.
    :param bfloat16: whether bfloat16 is one of them.
    """
    sliced = prune(plain.model, genes, order)
    half: Any = copy.deepcopy(sliced) if bfloat16 else None
    return {
        "float32": sliced,
        **({"bfloat16": half.to(torch.bfloat16)} if bfloat16 else {}),
        "quantise, then prune": prune(int8.model, genes, order),
        "prune, then quantise": quantised_copy(sliced),
    }


def rows_of(flags: list[str], seed: int, rank: str | None, bfloat16: bool) -> list[dict[str, Any]]:
    """Return a row for the dense model and for each sub-model, with its perplexities.

    :param flags: flags of a run.
    :param seed: seed of the search and of the calibration examples.
    :param rank: name of an importance; default: a search.
    :param bfloat16: whether to compute in bfloat16, too.
    """
    started = time.perf_counter()
    found = {how: sub_model([*flags, f"--seed={seed}"], how, rank) for how in FOUND_ON}
    plain, int8 = (found[how][0] for how in FOUND_ON)
    dense = [1] * len(plain.gene_map)
    rows = []
    for name, (evaluator, genes) in {"dense": (plain, dense), **found}.items():
        forms = forms_of(plain, int8, genes, evaluator.gene_map, bfloat16)
        assert plain.heldout is not None
        rows.append(
            {
                "seed": seed,
                "found_on": name,
                "genes_removed": genes.count(0),
                "sparsity": evaluator.sparsity(genes),
                "bytes": {form: weight_bytes(one) for form, one in forms.items()},
                "perplexity": {
                    form: plain.metrics_of(one, plain.heldout)["perplexity"]
                    for form, one in forms.items()
                },
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return medians and ranges of the increase over the dense model in float32, in percent."""
    dense = {
        row["seed"]: row["perplexity"]["float32"] for row in rows if row["found_on"] == "dense"
    }
    found: dict[str, dict[str, list[float]]] = {}
    for name in dict.fromkeys(row["found_on"] for row in rows):
        own = [row for row in rows if row["found_on"] == name]
        found[name] = {}
        for form in own[0]["perplexity"]:
            values = [100 * (row["perplexity"][form] / dense[row["seed"]] - 1) for row in own]
            found[name][form] = [statistics.median(values), min(values), max(values)]
    return found


def main() -> None:
    """Measure, print a line for each sub-model, and write the results."""
    parser = Parser(description=__doc__)
    parser.add_argument("--rank", help="an importance to rank by, in place of a search")
    parser.add_argument("--no_bfloat16", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    given, flags = parser.parse_known_args()
    check_torchao("int8 weights")
    quiet()
    rows = []
    for seed in range(given.seeds):
        for row in rows_of(flags, seed, given.rank, not given.no_bfloat16):
            rows.append(row)
            cells = ", ".join(f"{form} {value:.3f}" for form, value in row["perplexity"].items())
            print(f"seed {seed}, found on {row['found_on']}: {cells}", flush=True)
        content = {"flags": flags, "rank": given.rank, "rows": rows, "change": summary(rows)}
        write_json(given.output, content)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
