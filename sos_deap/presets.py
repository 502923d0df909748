"""Named settings, for the first argument of the command line; flags override them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from sos_deap.errors import unknown
from sos_deap.flags import as_flags
from sos_deap.loss_settings import CURVE
from sos_deap.settings_files import file_flags

# The search of best-heads on heads and channels. As these are more genes, there are fewer sweeps,
# so that each has more than one example. The refit helps on text of another kind, too
# (docs/numbers.md).
_SWEEP: dict[str, Any] = {
    "genes": "heads+channels",
    "algorithm": "sweep,sweeps=2,near=0.25,candidates=1",
    "max_evaluations": 24,
    "refit": "after",
}
# The divergence changes with every sub-model, the accuracy only where an answer does.
_CLASSIFIER: dict[str, Any] = {**_SWEEP, "metric": "kl", "samples": 256}
_QUESTIONS: dict[str, Any] = {**_SWEEP, "metric": "answer_perplexity", "samples": 256}

# By ROUGE of generated text, as many evaluations took 14 times as long, and found no better heads
# (docs/numbers.md).
_SUMMARIES: dict[str, Any] = {"metric": "kl"}

#: The settings of each preset; those under the name of a task apply to that task only.
PRESETS: dict[str, dict[str, Any]] = {
    "best": {
        "algorithm": "sweep,prior=wanda",
        "kl": {**_SWEEP, "samples": 128, "heldout_samples": 256},
        "accuracy": _CLASSIFIER,
        "multilabel": _CLASSIFIER,
        "summarization": _SUMMARIES,
        "multiple-choice": _QUESTIONS,
    },
    # The search that kept most of the quality in the comparisons (README, "Which search"), which
    # were of causal language models on heads: these get the task kl. The budget equals the tokens
    # of the defaults' 1,010 evaluations of 8 sequences.
    "best-heads": {
        "algorithm": "sweep,prior=wanda",
        "kl": {"metric": "distillation", "samples": 128, "max_evaluations": 63},
        "summarization": _SUMMARIES,
    },
}


def named_flags(
    name: str, model: str, task: str, names: Collection[str], bounded: bool = False
) -> list[str]:
    """Return the flags of a preset, for a model and its task, or of a file.

    :param name: a key of :data:`PRESETS`, or a YAML or JSON file of settings.
    :param model: Hub name or folder of the model.
    :param task: the task that is given, ``"auto"`` for the one that fits the model.
    :param names: names of all settings.
    :param bounded: whether the loss of quality has a bound, which takes sub-models of several
        sparsities.
    :raises InputError: for an unknown preset, and for a file or a model that cannot be read.
    """
    if name not in PRESETS:
        if not name.endswith((".yaml", ".yml", ".json")):
            raise unknown("preset", name, PRESETS)
        return file_flags(Path(name), names)
    # These import torch.
    from sos_deap.models.purposes import feed_forward_genes, groups_heads
    from sos_deap.tasks.registry import resolved_task

    task = resolved_task(task, model, causal="kl")
    feed_forward = feed_forward_genes(model) if name == "best" else None
    if name == "best" and feed_forward is None:
        name = "best-heads"
    common = {key: value for key, value in PRESETS[name].items() if not isinstance(value, dict)}
    chosen = {**common, "task": task, **PRESETS[name].get(task, {})}
    if "genes" in chosen:
        # Where groups differ in size, each key is copied for its heads: decoding saves little.
        chosen["genes"] = f"{'groups' if groups_heads(model) else 'heads'}+{feed_forward}"
    if bounded:
        chosen["algorithm"] += f",curve={CURVE}"
        if "max_evaluations" in chosen:
            chosen["max_evaluations"] += CURVE
    return as_flags(chosen)
