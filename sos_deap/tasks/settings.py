"""Settings of tasks and their data; every field is a command-line flag of ``run``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from sos_deap.errors import InputError, unknown

#: Argument groups of flags and their headings in ``--help``, in order.
GROUPS = {
    "data": "model and data",
    "task": "task",
    "genes": "genes and budget",
    "search": "search",
    "refit": "refit",
    "evaluation": "evaluation",
    "engine": "engine",
    "output": "output",
}


def setting(
    default: Any, group: str, text: str, *, unset: str | None = None, common: bool = False
) -> Any:
    """Return a dataclass field that is also a command-line flag.

    :param default: default value; ``None`` where there is no fixed one.
    :param group: argument group of the flag, a key of :data:`GROUPS`.
    :param text: help text, without the default.
    :param unset: meaning of the default ``None``, such as ``"never"``.
    :param common: whether the short help ``-h`` lists the flag.
    """
    assert group in GROUPS
    assert (default is None) == (unset is not None)
    shown = str(default) if unset is None else unset
    return field(
        default=default, metadata={"group": group, "help": text, "default": shown, "common": common}
    )


#: Fields that must be at least 1 where they are given.
_COUNTS = (
    *("samples", "validation_samples", "heldout_samples", "refit_samples"),
    *("stream_rows", "top_k", "score_every", "num_beams", "max_new_tokens"),
)

#: Positions of start tokens in running text.
START_TOKENS = ("auto", "each", "none")


@dataclass(frozen=True)
class TaskSettings:
    """How to read the data and what to measure; a task uses the fields that it needs."""

    samples: int | None = setting(
        None,
        "data",
        "Calibration examples that score each sub-model.",
        unset="8 sequences of text, 256 labelled examples or questions, or 16 texts to summarise",
        common=True,
    )
    validation_samples: int | None = setting(
        None,
        "search",
        "Further calibration examples, not used by the search, on which the winner is chosen "
        "among the finalists.",
        unset="the winner is chosen on the calibration examples",
    )
    heldout_samples: int | None = setting(
        None, "data", "Held-out examples that the result is reported on.", unset="all"
    )
    refit_samples: int | None = setting(
        None,
        "refit",
        "Further calibration examples, for the refit. At least 16 tokens for each input of a "
        "projection, such as the channels of a layer, are advisable.",
        unset="128 if the winner is refitted",
    )
    refit_dataset: str | None = setting(
        None,
        "refit",
        "Another data set that half of the refit examples are from, so that the refit of a "
        "language model does not fit one kind of text alone.",
        unset="none",
    )
    probe_dataset: str | None = setting(
        None,
        "data",
        "Other data that the dense and the pruned model are compared on, such as text of another "
        "kind, which shows whether the result holds there: 256 of its held-out examples, or "
        "--heldout_samples.",
        unset="none",
    )
    seqlen: int | None = setting(
        None,
        "data",
        "Tokens in a sequence of text, or most tokens of an example.",
        unset="the longest input of the model, at most 2048, running text on a CPU at most 512",
        common=True,
    )
    start_token: str = setting(
        "auto",
        "data",
        "Start token of a causal language model's sequences: each (the tokenizer's, at the start "
        "of every sequence), none (only at the start of the whole text, as in most papers on "
        "pruning), or auto (each if the tokenizer puts one before a text, else none).",
    )
    text_column: str | None = setting(
        None,
        "data",
        "Column of the text, or two columns for pairs, separated by a comma.",
        unset="the usual names: text, sentence, premise and hypothesis, article, ...",
    )
    label_column: str | None = setting(
        None,
        "data",
        "Column of the label, or several columns of 0/1 labels, separated by commas.",
        unset="the usual names",
    )
    summary_column: str | None = setting(
        None,
        "data",
        "Column of the reference summary.",
        unset="the usual names: summary, highlights",
    )
    calibration_split: str | None = setting(
        None,
        "data",
        "Split that the search uses.",
        unset="train, else validation, else half of the only split",
    )
    heldout_split: str | None = setting(
        None,
        "data",
        "Split that the result is reported on.",
        unset="test, else validation, else half of the only split",
    )
    stream_rows: int | None = setting(
        None,
        "data",
        "Number of rows to read from the start of each split, without downloading the rest.",
        unset="all rows",
    )
    metric: str | None = setting(
        None,
        "task",
        "Metric of the task that the fitness is computed from: perplexity, kl, distillation, "
        "accuracy; micro_f1, macro_f1, subset_accuracy, jaccard; accuracy_norm, "
        "answer_perplexity; rougeL_f1, rouge1_precision, ..., bleu, bertscore_precision.",
        unset="the main metric of the task",
    )
    label_threshold: float = setting(
        0.5, "task", "multilabel: a label is predicted if its probability is above this."
    )
    top_k: int = setting(
        64,
        "task",
        "kl: number of most likely tokens kept of the dense model's distribution; the probability "
        "of all other tokens is kept as one sum.",
    )
    score_every: int = setting(
        1,
        "task",
        "kl, perplexity of a causal model: score every N-th position of the calibration sequences. "
        "The layers read all positions; the head, which takes most of the time of a small model "
        "with a large vocabulary, runs on the scored ones only.",
    )
    prompt: str | None = setting(
        None,
        "task",
        "summarization, multiple-choice: input of the model, with {text} in place of the text or "
        "the question.",
        unset="{text} for encoder-decoders; {text}, a new line and TL;DR: for other models; for "
        "questions {text}, and a line Answer: if one of its lines begins with Question:",
    )
    max_new_tokens: int = setting(64, "task", "summarization: most tokens of a summary.")
    num_beams: int = setting(1, "task", "summarization: beams of the beam search; 1 is greedy.")
    bertscore_model: str | None = setting(
        None,
        "task",
        "summarization: Hub name or folder of an encoder for BERTScore.",
        unset="BERTScore is not computed",
    )
    temperature: float = setting(1.0, "data", "builtin:self: sampling temperature of the text.")

    def __post_init__(self) -> None:
        """Check the ranges; raises :class:`InputError` for a value that no task can use."""
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: give at least 1")
        if self.start_token not in START_TOKENS:
            raise unknown("start_token", self.start_token, START_TOKENS)
        if not 0 < self.label_threshold < 1:
            raise InputError(
                f"label_threshold is {self.label_threshold}: a probability lies between 0 and 1"
            )
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}: give a number above 0")
        if self.prompt is not None and "{text}" not in self.prompt:
            raise InputError(f"prompt is {self.prompt!r}: write {{text}} where the text goes")


def task_settings(values: dict[str, Any]) -> TaskSettings:
    """Return the task settings given by name.

    :raises InputError: for a name that is not a field of :class:`TaskSettings`, or a bad value.
    """
    names = [field.name for field in fields(TaskSettings)]
    for name in values:
        if name not in names:
            raise unknown("setting", name, names)
    return TaskSettings(**values)
