"""What a task can be told, beside the model and the data set; every field is a flag of `run`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from sos_deap.errors import InputError, unknown


def setting(default: Any, text: str) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


#: Fields that are numbers above 0.
_COUNTS = (
    *("samples", "validation_samples", "heldout_samples"),
    *("stream_rows", "top_k", "num_beams"),
)

#: Where a start token stands in running text.
START_TOKENS = ("auto", "each", "none")


@dataclass(frozen=True)
class TaskSettings:
    """How to read the data and what to measure; a task uses the fields it needs."""

    samples: int | None = setting(
        None,
        "Calibration examples that score each sub-model; None is 8 sequences of text, 256 labelled "
        "examples, or 16 texts to summarise.",
    )
    validation_samples: int | None = setting(
        None,
        "Further calibration examples, which the search does not see: the best of its finalists on "
        "them is the winner; None is no such choice.",
    )
    heldout_samples: int | None = setting(
        None, "Held-out examples that the result is reported on; None is all there are."
    )
    seqlen: int | None = setting(
        None,
        "Tokens in a sequence of text, or most tokens of an example; None is the model's longest, "
        "at most 2048.",
    )
    start_token: str = setting(
        "auto",
        "Start token of a causal language model's sequences: each (the tokenizer's, at the head of "
        "every sequence), none (at the beginning of the whole text alone, as in the tables of "
        "papers on pruning), or auto: each where the tokenizer puts one before a text.",
    )
    text_column: str | None = setting(
        None,
        "Column of the text, or two for pairs, with a comma; None finds the usual names "
        "(text, sentence, premise and hypothesis, article, ...).",
    )
    label_column: str | None = setting(
        None,
        "Column of the label, or of several 0/1 labels, with commas; None finds the usual names.",
    )
    summary_column: str | None = setting(
        None, "Column of the reference summary; None finds the usual names (summary, highlights)."
    )
    calibration_split: str | None = setting(
        None, "Split that the search sees; None is train, else validation, else half of what is."
    )
    heldout_split: str | None = setting(
        None, "Split that the result is reported on; None is test, else validation, else half."
    )
    stream_rows: int | None = setting(
        None, "Read only so many first rows of each split, without downloading the rest."
    )
    metric: str | None = setting(
        None,
        "Which of the task's metrics is the fitness: perplexity, kl, distillation, accuracy; "
        "micro_f1, macro_f1, subset_accuracy, jaccard; rougeL_f1, rouge1_precision, ..., bleu, "
        "bertscore_precision. None is the task's own.",
    )
    label_threshold: float = setting(
        0.5, "multilabel: a label is given where its probability is above this."
    )
    top_k: int = setting(
        64, "kl: most likely tokens kept of the dense model's distribution, beside one sum of all."
    )
    prompt: str | None = setting(
        None,
        "summarization: what the model reads, with {text} for the text; None is {text} alone, and "
        "for models without an encoder {text}, a new line and TL;DR:",
    )
    max_new_tokens: int = setting(64, "summarization: most tokens of a summary.")
    num_beams: int = setting(1, "summarization: beams of the search for a summary; 1 is greedy.")
    bertscore_model: str | None = setting(
        None,
        "summarization: Hub name or folder of an encoder for BERTScore; None computes none.",
    )
    temperature: float = setting(1.0, "builtin:self: temperature that the text is sampled at.")

    def __post_init__(self) -> None:
        """Raise :class:`InputError` for a value that no task can use."""
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: give at least 1")
        if self.start_token not in START_TOKENS:
            raise unknown("start_token", self.start_token, START_TOKENS)
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}: give at least 1")
        if not 0 < self.label_threshold < 1:
            raise InputError(
                f"label_threshold is {self.label_threshold}: a probability lies between 0 and 1"
            )
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}: give a number above 0")
        if self.prompt is not None and "{text}" not in self.prompt:
            raise InputError(f"prompt is {self.prompt!r}: write {{text}} where the text goes")


def task_settings(values: dict[str, Any]) -> TaskSettings:
    """Settings by name; raises :class:`InputError` for a name that is none."""
    names = [field.name for field in fields(TaskSettings)]
    for name in values:
        if name not in names:
            raise unknown("setting", name, names)
    return TaskSettings(**values)
