"""Flags of a comparison, and flags of a run that the benchmark, all variants or one variant set."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sos_deap.config import RunConfig
from sos_deap.errors import InputError
from sos_deap.tasks.settings import TaskSettings

#: The flags of a comparison, which are also the keys of a ``--config`` file.
FLAGS: dict[str, dict[str, Any]] = {
    "config": {"help": "YAML file of flags, names without --; the command line overrides it"},
    "model": {"nargs": "+", "help": "models, as for sos_deap.run (builtin:tiny)"},
    "dataset": {"nargs": "+", "help": "data sets, as for sos_deap.run (builtin:pydoc)"},
    "variants": {
        "nargs": "+",
        "help": "names of variants, separated by commas or spaces (sos,sos-repaired,swap)",
    },
    "variants_file": {"help": "YAML file of more variants, NAME: {FLAG: VALUE, ...}"},
    "budget": {
        "nargs": "+",
        "type": int,
        "help": "distinct evaluations per run on the shared calibration examples, counted by "
        "tokens: one on half of the examples is half an evaluation (1000)",
    },
    "budget_tokens": {"nargs": "+", "type": int, "help": "tokens per run, instead of --budget"},
    "sparsity": {
        "nargs": "+",
        "type": float,
        "help": "proportions to remove, of what --sparsity_of names (0.31)",
    },
    "seeds": {"type": int, "help": "runs per variant, paired by seed (15)"},
    "first_seed": {"type": int, "help": "first seed (0)"},
    "workers": {"type": int, "help": "processes, which share the cores (1)"},
    "store": {"help": "SQLite file of all evaluations (store.sqlite in --output_dir)"},
    "heldout_task": {
        "help": "task of the held-out metrics (kl if a variant uses it, else that of all variants)"
    },
    "heldout_metric": {
        "help": "metric to compare (perplexity for kl, else the default of the task)"
    },
    "reference": {"help": "variant whose median is the target (the first)"},
    "target": {"type": float, "help": "held-out metric to reach (the median of --reference)"},
    "control": {"help": "variant to test all others against (all pairs are tested)"},
    "ioh": {"action": "store_true", "help": "also write files for IOHanalyzer"},
    "output_dir": {"help": "folder of the results; an existing folder is resumed"},
}

_TASK = {field.name for field in fields(TaskSettings)}

#: Flags of a run.
RUN = {field.name for field in fields(RunConfig)} | _TASK

#: Flags of a run that the benchmark sets.
OWN = {
    *("model", "dataset", "seed", "output_dir", "store", "profile", "tensorboard", "layout"),
    *("engine", "workers", "hostfile"),
    *(f"max_{what}" for what in ("sparsity", "evaluations", "tokens", "loss")),
}

#: Flags that all variants share, so that all solve the same problem on the same examples.
SHARED = {"genes", "channel_blocks", "sparsity_of", "device", "dtype"} | (
    _TASK - {"samples", "validation_samples", "metric", "top_k"}
)


def flag_names() -> set[str]:
    """Return the flags of a comparison and the flags of a run that a comparison accepts."""
    return set(FLAGS) | (RUN - OWN)


def refuse_own(name: str, where: str) -> None:
    """Raise :class:`InputError` for a flag of a run that the benchmark sets.

    :param where: what sets the flag, for the message.
    """
    if name in OWN:
        raise InputError(
            f"{where} sets {name}, which the benchmark sets itself: remove it "
            "(the benchmark has --seeds, --sparsity, --budget, --budget_tokens and --store)"
        )
