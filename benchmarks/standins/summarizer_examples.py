"""The copy task of the summariser: streams of tokens, batches of leads, and their curriculum."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.standins.summarizer_data import Texts, sentences

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SEPARATOR = "\nTL;DR:"
SOURCE = 192  # tokens of an article that the model reads
SUMMARY = 80  # maximum tokens of a summary; its last sentence may be cut
SHORTEST = 60  # a summary ends with the first sentence that reaches this many tokens
IGNORED = -100  # cross_entropy's label for "no loss here"


@dataclass(frozen=True)
class Stage:
    """A stage of the curriculum: the model learns to copy short texts first, then longer ones.

    :param share: proportion of all steps.
    :param sources: minimum and maximum length of a text in tokens.
    :param summary: maximum length of a target in tokens.
    :param rows: texts per batch.
    :param noise: proportion of texts of random tokens, which can be predicted by copying only.
    """

    share: float
    sources: tuple[int, int]
    summary: int
    rows: int
    noise: float


STAGES = (
    Stage(0.25, (6, 24), 24, 48, 0.5),
    Stage(0.20, (24, 64), 48, 24, 0.3),
    Stage(0.25, (64, 128), SUMMARY, 12, 0.1),
    Stage(0.30, (112, SOURCE), SUMMARY, 10, 0.1),
)


def stage_at(step: int, steps: int) -> Stage:
    """Return the stage of the curriculum at a step."""
    reached = 0.0
    for stage in STAGES:
        reached += stage.share
        if step < reached * steps:
            return stage
    return STAGES[-1]


@dataclass(frozen=True)
class Stream:
    """Running text as token ids, with the offsets at which sentences begin."""

    tokens: torch.Tensor
    starts: torch.Tensor

    def lead(self, start: int) -> tuple[int, bool]:
        """Return the length of the lead that begins at `start`, and whether it ends a sentence."""
        place = int(torch.searchsorted(self.starts, start + SHORTEST))
        length = int(self.starts[place]) - start if place < len(self.starts) else SUMMARY
        return (length, True) if length < SUMMARY else (SUMMARY, False)


def stream(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Stream:
    """Tokenize all texts into one row, with the offsets of sentences."""
    parts = [sentence for text in texts for sentence in sentences(text)]
    rows = tokenizer(parts, add_special_tokens=False)["input_ids"]
    lengths = torch.tensor([0, *(len(row) for row in rows)])
    return Stream(torch.tensor([t for row in rows for t in row]), lengths.cumsum(0)[:-1])


class Examples:
    """Batches of the copy task.

    :param streams: running texts, each with its proportion of the rows.
    :param datelines: token ids of the datelines to prepend to a part of the texts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        streams: list[tuple[float, Stream]],
        datelines: list[list[int]],
        seed: int,
    ) -> None:
        self.streams = streams
        self.datelines = datelines
        self.draw = random.Random(seed)
        ids: Any = tokenizer.convert_tokens_to_ids([BOS, EOS, SEPARATOR])
        self.bos, self.eos, self.separator = ids
        self.vocabulary = len(tokenizer)

    def batch(self, stage: Stage) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs (rows, tokens) and the labels of their last `summary` positions.

        All texts of a batch have the same length, so only the targets are padded.
        """
        length = self.draw.randint(*stage.sources)
        pairs = [self._row(stage, length) for _ in range(stage.rows)]
        inputs = torch.full((stage.rows, length + stage.summary + 1), self.eos)
        labels = torch.full((stage.rows, stage.summary), IGNORED)
        for row, (source, target) in enumerate(pairs):
            seen = [self.bos, *source, self.separator, *target[:-1]]
            inputs[row, : len(seen)] = torch.tensor(seen)
            labels[row, : len(target)] = torch.tensor(target)
        return inputs, labels

    def _row(self, stage: Stage, length: int) -> tuple[list[int], list[int]]:
        """Return a text of `length` tokens and its lead."""
        if self.draw.random() < stage.noise:
            source = [self.draw.randrange(3, self.vocabulary - 1) for _ in range(length)]
            return source, source[: stage.summary]
        weights = [weight for weight, _ in self.streams]
        found = self.draw.choices(self.streams, weights)[0][1]
        last = int(torch.searchsorted(found.starts, len(found.tokens) - SOURCE))
        start = int(found.starts[self.draw.randrange(last)])
        before = self.draw.choice(self.datelines) if self.draw.random() < 0.4 else []
        before = before if len(before) < length // 2 else []
        source = before + found.tokens[start : start + length - len(before)].tolist()
        size, ends = found.lead(start)
        target = found.tokens[start : start + size].tolist() + [self.eos] * ends
        return source, target[: min(stage.summary, length - len(before))]


def examples_of(tokenizer: PreTrainedTokenizerFast, texts: Texts, seed: int) -> Examples:
    """Return the batches of the training texts."""
    streams = [
        (0.6, stream(tokenizer, texts.wiki)),
        (0.15, stream(tokenizer, texts.stories)),
        (0.25, stream(tokenizer, texts.news)),
    ]
    datelines: Any = tokenizer(texts.datelines, add_special_tokens=False)["input_ids"]
    return Examples(tokenizer, streams, datelines, seed)
