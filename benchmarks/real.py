"""Searches, baselines and refits on a real language model, at shares of its layers' parameters.

    python -m benchmarks.real --model gemma-3-270m --dataset DATA/wikitext-2 \
        --output_dir runs/real/gemma-3-270m [--models_dir DIR] [--methods best,evopress]

Each method, share and seed has a JSON file: the held-out metrics of the dense model, of the
sub-model, and of the sub-model after the refit, and the times of prefill and decoding of the dense
and the pruned model in turn. What has a result is skipped, so that a stopped study continues. With
``--models_dir`` the pruned models, after the refit, are kept. ``--refit_found`` refits what earlier
searches found, in place of searching, adds the result to their files, and keeps the models under
names that end in ``_refitted``. All searches get the same number of evaluations on the same
calibration text, which the dense model reads once for all of them.

What several searches of a seed evaluate, such as the dense model without one gene, is computed once
and kept in a journal in the output folder, which a stopped search also resumes from. Each search
pays for it as if it had computed it; only ``seconds`` is less.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sos_deap import Evaluator, prune
from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.config import parse
from sos_deap.errors import InputError, unknown
from sos_deap.evaluation.evaluator import OPTIONS
from sos_deap.files.atomic import replaceable_folder, whole_folder, write_json
from sos_deap.models.costs import layer_parameters
from sos_deap.models.devices import device_name
from sos_deap.models.measure import measure
from sos_deap.plan import Plan, evaluator_of, plan_of, search, toolbox_of
from sos_deap.quality import quality
from sos_deap.refitting import refit_of
from sos_deap.rehearsal import timed_lengths

_ALL = ("--task=kl", "--genes=heads+channels")
_HEADS = ("--task=kl", "--genes=heads")
_PAPER = ("--task=perplexity", "--genes=heads")

#: Task and genes of each method, which methods with the same ones share, and its algorithm.
METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    "best": (_ALL, "sweep,sweeps=2,near=0.25,candidates=1"),
    "evopress": (_ALL, "evopress"),
    "knapsack": (_ALL, "knapsack"),
    "2ssp": (_ALL, "two-stage"),
    "flap": (_ALL, "one-shot,prior=flap"),
    "wanda": (_ALL, "one-shot,prior=wanda"),
    "heads-best": (_HEADS, "sweep,prior=wanda"),
    "heads-paper": (_PAPER, "sos"),
    "heads-repaired": (_PAPER, "sos-repaired"),
}

#: Flags of all methods. Every fourth position is scored: the head, of 262,144 tokens in Gemma 3,
#: takes most of the time otherwise.
DEFAULTS = [
    *("--seqlen=512", "--samples=8", "--score_every=4", "--max_evaluations=30"),
    *("--heldout_samples=8", "--channel_blocks=8", "--sparsity_of=parameters"),
    *("--calibration_split=train", "--heldout_split=test", "--dtype=float32"),
]

_REFIT = ["--refit=after", "--refit_samples=64"]
_REFIT_RESULTS = ("tokens", "inputs", "seconds")

# A file, its method and share, what the file has so far, and the folder of the model to be kept.
_Missing = tuple[str, str, float, dict[str, Any] | None, Path | None]


def unspent(plan: Plan, evaluator: Evaluator, share: float) -> Evaluator:
    """Return an evaluator of the same model and text, with an empty cache and a new budget.

    :param plan: the plan of a search.
    :param evaluator: an evaluator of the model.
    :param share: share of the layers' parameters that may be removed.
    """
    options = {name: getattr(plan.config, name) for name in OPTIONS}
    layers = layer_parameters(evaluator.model, evaluator.gene_map)
    options["max_sparsity"] = share * layers / evaluator.model.num_parameters()
    found = Evaluator(
        evaluator.model,
        evaluator.task,
        plan.fitness,
        heldout=evaluator.heldout,
        refit_task=evaluator.refit_task,
        channel_order=evaluator.gene_map.channel_order,
        **options,
    )
    found.tokenizer, found.stored_dtype = evaluator.tokenizer, evaluator.stored_dtype
    return found


def save(pruned: Any, evaluator: Evaluator, folder: Path | None) -> None:
    """Save a pruned model.

    :param pruned: the model.
    :param evaluator: has the tokenizer.
    :param folder: where; ``None``: it is not saved.
    """
    if folder is None:
        return
    with whole_folder(folder) as part:
        pruned.save_pretrained(part)
        evaluator.tokenizer.save_pretrained(part)


def refitted(
    plan: Plan, evaluator: Evaluator, row: dict[str, Any], folder: Path | None
) -> dict[str, Any]:
    """Refit what an earlier search found.

    :param plan: the plan of the search.
    :param evaluator: its evaluator.
    :param row: its result.
    :param folder: where to save the refitted model; ``None``: it is not saved.
    :returns: the result with the metrics after the refit.
    """
    pruned: Any = prune(evaluator.model, list(map(int, row["chromosome"])), evaluator.gene_map)
    refit = refit_of(evaluator, plan.config)
    assert refit is not None
    refit(pruned)
    before = refit.result["without"]["heldout"]["perplexity"]
    if abs(before - row["pruned"]["perplexity"]) > 1e-3 * before:
        raise InputError(
            f"the sub-model has the perplexity {before}, and {row['pruned']['perplexity']} in its "
            "file: give the flags and the data of the search"
        )
    metrics = quality(evaluator, pruned, ("heldout",)).metrics["heldout"]
    save(pruned, evaluator, folder)
    return row | {
        "refitted": metrics,
        "refit": {name: refit.result[name] for name in _REFIT_RESULTS},
    }


def result(
    plan: Plan, evaluator: Evaluator, journal: Path, folder: Path | None, timing: float
) -> dict[str, Any]:
    """Find a sub-model, score, refit, keep and time it.

    :param plan: the plan of the search.
    :param evaluator: its evaluator.
    :param journal: file of what searches have computed with the same task, genes and text.
    :param folder: where to save the pruned model; ``None``: it is not saved.
    :param timing: the most seconds of timing.
    """
    model: Any = evaluator.model
    started = time.perf_counter()
    evaluator.open_journal(journal)
    try:
        evolution = search(plan, evaluator, toolbox=toolbox_of(plan, evaluator))
    finally:
        evaluator.close_journal()
    seconds = time.perf_counter() - started
    best = list(evolution.halloffame[0])
    pruned: Any = prune(model, best, evaluator.gene_map)
    found: dict[str, Any] = {
        "sparsity": evaluator.sparsity(best),
        "max_sparsity": evaluator.max_sparsity,
        "chromosome": "".join(map(str, best)),
        "seconds": seconds,
        "spent": evaluator.spent(),
        "calibration": evaluator.task.describe(),
    }
    refit = refit_of(evaluator, plan.config)
    if refit is None:
        found["pruned"] = quality(evaluator, pruned, ("heldout",)).metrics["heldout"]
    else:
        refit(pruned)
        found["pruned"] = refit.result["without"]["heldout"]
        found["refitted"] = quality(evaluator, pruned, ("heldout",)).metrics["heldout"]
        found["refit"] = {name: refit.result[name] for name in _REFIT_RESULTS}
    both = {"dense": model, "pruned": pruned}
    length, new_tokens = timed_lengths(model, evaluator.task.seqlen)
    found["times"] = measure(both, lengths=[length], new_tokens=new_tokens, seconds=timing)
    save(pruned, evaluator, folder)
    return found


def missing(names: list[str], seed: int, given: Any) -> list[_Missing]:
    """Return what has no result yet.

    :param names: methods.
    :param seed: seed of the searches and of the calibration text.
    :param given: the settings of the study.
    :raises InputError: if the folder of a model to be kept is not empty.
    """
    found = []
    for share in given.shares:
        for name in names:
            file = f"{name}_{share:g}_{seed}"
            path = given.output_dir / f"{file}.json"
            row = json.loads(path.read_text("utf-8")) if path.exists() else None
            if (row is None) == given.refit_found or (row and row.get("refitted")):
                continue
            kept = f"{file}_refitted" if given.refit_found else file
            folder = given.models_dir and replaceable_folder(given.models_dir / kept)
            found.append((file, name, share, row, folder))
    return found


def results(
    names: list[str], seed: int, flags: list[str], given: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the content of each file that has no result yet.

    :param names: methods, which share a task and genes.
    :param seed: seed of the searches and of the calibration text.
    :param flags: flags of all searches.
    :param given: the settings of the study.
    :raises InputError: if the folder of a model to be kept is not empty.
    """
    first: Evaluator | None = None
    dense: dict[str, float | None] = {}
    for file, name, share, row, folder in missing(names, seed, given):
        common, algorithm = METHODS[name]
        own = [*DEFAULTS, *common, f"--algorithm={algorithm}", f"--seed={seed}"]
        own += [*([] if given.no_refit else _REFIT), *flags]
        plan = plan_of(*parse(own))
        first = first or evaluator_of(plan)
        if row is not None:
            yield file, refitted(plan, first, row, folder)
            continue
        dense = dense or quality(first, first.model, ("heldout",)).metrics["heldout"]
        journal = given.output_dir / f"{plan.config.task}_{plan.config.genes}_{seed}.jsonl"
        about = {"method": name, "share": share, "seed": seed, "dense": dense}
        about |= {"device": device_name(first.model.device)}
        found = result(plan, unspent(plan, first, share), journal, folder, given.seconds)
        yield file, about | found


def main() -> None:
    """Run what has no file yet."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.27, 0.2, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--models_dir", type=Path)
    parser.add_argument("--no_refit", action="store_true", help="no refit of what is found")
    parser.add_argument("--refit_found", action="store_true", help="refit what was found before")
    parser.add_argument("--seconds", type=float, default=60, help="the most seconds of timing")
    given, flags = parser.parse_known_args()
    quiet()
    groups: dict[tuple[str, ...], list[str]] = {}
    for method in given.methods.split(","):
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        groups.setdefault(METHODS[method][0], []).append(method)
    given.output_dir.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for names in groups.values():
            for file, row in results(names, seed, flags, given):
                write_json(given.output_dir / f"{file}.json", row)
                found = {key: row.get(key) for key in ("dense", "pruned", "refitted", "seconds")}
                print(file, found, flush=True)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
