"""Searches, baselines and refits on a real language model, at shares of its layers' parameters.

    python -m benchmarks.real --model gemma-3-270m --dataset DATA/wikitext-2 \
        --output_dir runs/real/gemma-3-270m --models_dir runs/models/real --methods best,evopress

Each job, a method with a share and a seed, writes one JSON file: the held-out perplexity of the
dense model, of the sub-model, and of the sub-model after the refit, and the time of prefill and
decoding of the dense and the pruned model in turn. Jobs whose file exists are skipped, so that a
stopped study continues. With ``--models_dir`` the pruned models, after the refit, are kept.
All searches get the same budget in evaluations on the same calibration examples.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.shares import heldout, refitted_model
from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.config import parse
from sos_deap.errors import unknown
from sos_deap.files.atomic import whole_folder, write_json
from sos_deap.models.costs import layer_parameters
from sos_deap.models.devices import device_name
from sos_deap.models.measure import measure
from sos_deap.plan import evaluator_of, plan_of, search, toolbox_of

_SEARCH = ["--task=kl", "--genes=heads+channels", "--refit=after"]
_HEADS = ["--genes=heads"]

#: Flags of each method; those of ``DEFAULTS`` come first.
METHODS: dict[str, list[str]] = {
    "best": [*_SEARCH, "--algorithm=sweep,sweeps=2,near=0.25,candidates=1"],
    "evopress": [*_SEARCH, "--algorithm=evopress"],
    "knapsack": [*_SEARCH, "--algorithm=knapsack"],
    "2ssp": [*_SEARCH, "--algorithm=two-stage"],
    "flap": [*_SEARCH, "--algorithm=one-shot,prior=flap"],
    "wanda": [*_SEARCH, "--algorithm=one-shot,prior=wanda"],
    "heads-paper": [*_HEADS, "--task=perplexity", "--algorithm=sos"],
    "heads-repaired": [*_HEADS, "--task=perplexity", "--algorithm=sos-repaired"],
    "heads-best": [*_HEADS, "--task=kl", "--algorithm=sweep,prior=wanda", "--refit=after"],
}

#: Flags of all methods. Every fourth position is scored: the head, of 262,144 tokens in Gemma 3,
#: takes most of the time otherwise.
DEFAULTS = [
    *("--seqlen=512", "--samples=8", "--score_every=4", "--max_evaluations=24"),
    *("--heldout_samples=16", "--channel_blocks=8", "--sparsity_of=parameters"),
    *("--calibration_split=train", "--heldout_split=test", "--dtype=float32"),
]
_REFIT_SAMPLES = 32


def job(flags: list[str], share: float, folder: Path | None) -> dict[str, Any]:
    """Find a sub-model, score, refit and time it.

    :param flags: flags of a run.
    :param share: share of the layers' parameters to remove.
    :param folder: where to save the pruned model; ``None``: it is not saved.
    """
    plan = plan_of(*parse(flags))
    evaluator = evaluator_of(plan)
    model: Any = evaluator.model
    layers = layer_parameters(model, evaluator.gene_map)
    evaluator.max_sparsity = share * layers / model.num_parameters()
    started = time.perf_counter()
    evolution = search(plan, evaluator, toolbox=toolbox_of(plan, evaluator))
    best = list(evolution.halloffame[0])
    seconds = time.perf_counter() - started
    pruned, refit = refitted_model(plan, evaluator, best)
    if folder is not None:
        with whole_folder(folder) as part:
            pruned.save_pretrained(part)
            evaluator.tokenizer.save_pretrained(part)
    return {
        "share": share,
        "removed": evaluator.sparsity(best) * model.num_parameters() / layers,
        "chromosome": "".join(map(str, best)),
        "seconds": round(seconds, 1),
        "spent": evaluator.spent(),
        "calibration": evaluator.task.describe(),
        "dense": heldout(evaluator, [1] * len(best)),
        "heldout": heldout(evaluator, best),
        "refit": refit,
        "device": device_name(model.device),
        "times": measure(
            {"dense": model, "pruned": pruned}, lengths=[512], new_tokens=64, seconds=60
        ),
    }


def main() -> None:
    """Run the jobs that have no file yet."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.27, 0.2, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--models_dir", type=Path)
    given, flags = parser.parse_known_args()
    quiet()
    for method in (names := given.methods.split(",")):
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    given.output_dir.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for share in given.shares:
            for method in names:
                name = f"{method}_{share:g}_{seed}"
                path = given.output_dir / f"{name}.json"
                if path.exists():
                    continue
                chosen = [*DEFAULTS, *METHODS[method], f"--seed={seed}", *flags]
                if "--refit=after" in chosen:
                    chosen.append(f"--refit_samples={_REFIT_SAMPLES}")
                folder = given.models_dir and given.models_dir / name
                row = job(chosen, share, folder)
                write_json(path, {"method": method, "seed": seed, "flags": chosen, **row})
                print(name, row["dense"], row["heldout"], row["refit"].get("after"), flush=True)
                gc.collect()  # evaluators are in cycles, and hold a model and what it computed


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
