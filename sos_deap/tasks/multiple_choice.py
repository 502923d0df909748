"""Multiple choice: which of some answers a causal language model finds likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.models.loading import Pretrained
from sos_deap.tasks.classification import nan_if_nonfinite
from sos_deap.tasks.data.choices import questions
from sos_deap.tasks.data.draw import Draw, TaskMaker
from sos_deap.tasks.data.encoded_choices import Choice, Example, encoded_questions
from sos_deap.tasks.data.sequences import longest, start_of_sequences, token_hash
from sos_deap.tasks.likelihood import exp
from sos_deap.tasks.logits import likeliest, log_probabilities
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import checked_metric


class MultipleChoice:
    """Accuracy of the likeliest answers, as lm-eval computes it.

    The log-likelihood of a choice is the sum over the tokens of its answer. An answer without
    alternatives is right if each of its tokens is the likeliest one (LAMBADA).

    :param split: source of the questions, for the report.
    :param examples: the tokenized questions.
    :param device: device of the model.
    :param metric: the metric for the fitness, a name in :attr:`METRICS`; default: the first.
    :param start_token: description of the start token, for the report.
    """

    #: ``accuracy_norm`` decides by the log-likelihood per character of the answer (lm-eval's
    #: ``acc_norm``), ``accuracy`` by the log-likelihood (``acc``). ``answer_perplexity``, which is
    #: smooth, is exp of the mean negative log-probability of the right answer: among the choices,
    #: as if the answers to a question had the same length, their mean; of an answer without
    #: alternatives among all texts, which is lm-eval's ``perplexity`` on LAMBADA.
    METRICS = ("accuracy_norm", "accuracy", "answer_perplexity")

    one_pass = True
    reference_tokens = 0
    shares_passes = True

    def __init__(
        self,
        split: str,
        examples: Sequence[Example],
        device: torch.device | str = "cpu",
        metric: str | None = None,
        start_token: str | None = None,
    ) -> None:
        self.name = checked_metric(metric, self.METRICS)
        self.greater_is_better = self.name != "answer_perplexity"
        self.split, self._device, self._start_token = split, device, start_token
        #: Index of each example in the given order. The largest comes first, so that a batch too
        #: large for memory fails early, and those of like length share a batch.
        self.order = sorted(range(len(examples)), key=lambda i: -examples[i].padded)
        self.examples = [examples[i] for i in self.order]
        self.seqlen = self.examples[0].padded
        self.tokens = sum(len(row) for example in self.examples for row in example.rows)
        counts = [len(example.choices) for example in examples]
        #: The accuracy of random choices.
        self.chance = sum(1 / count for count in counts if count > 1) / len(counts)
        self._alone = 1 in counts

    def __len__(self) -> int:
        return len(self.examples)

    def describe(self) -> dict[str, Any]:
        """Return the source, size and hash of the questions, and the accuracy of random choices."""
        parts = chain.from_iterable(
            [len(example.rows), *example.rows, example.gold, *map(_numbers, example.choices)]
            for example in self.examples
        )
        start = {} if self._start_token is None else {"start_token": self._start_token}
        return {
            "split": self.split,
            "examples": len(self),
            **start,
            "tokens": self.tokens,
            "longest": max(len(row) for example in self.examples for row in example.rows),
            "token_hash": token_hash(torch.tensor(part) for part in parts),
            "chance": round(self.chance, 4),
        }

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return the sums over some examples of what :meth:`each` returns, (sub_models, 4)."""
        return self.each(model, examples, sub_models).sum(1)

    def each(self, model: Any, examples: slice, sub_models: int = 1) -> Tensor:
        """Return the values of each example, (sub_models, examples, 4), float64.

        They are: right by log-likelihood per character (0 or 1), right by log-likelihood, negative
        log-probability of the right answer in nats, and 1 to be counted. The first three are NaN if
        a log-likelihood is not finite.
        """
        logs, greedy = self.likelihoods(model, examples, sub_models)
        part = self.examples[examples]
        gold = self._tensor([example.gold for example in part]).expand(len(logs), -1)
        counts = self._tensor([len(example.choices) for example in part])[:, None]
        most = logs.shape[-1]
        absent = self._tensor(range(most)) >= counts
        lengths = [_filled([c.characters for c in e.choices], most, 0) for e in part]
        characters = self._tensor(lengths).double()
        among = logs.masked_fill(absent, -torch.inf)
        by_character = among / characters.clamp(min=1)
        alone = (counts == 1)[:, 0]
        right = [
            torch.where(alone, greedy[..., 0], found.argmax(-1) == gold).double()
            for found in (by_character, among)
        ]
        equal = by_character * (characters.sum(-1, keepdim=True) / counts)
        chosen = equal.log_softmax(-1).gather(-1, gold[..., None])[..., 0]
        nats = -torch.where(alone, logs[..., 0], chosen)
        each = [nan_if_nonfinite(values, logs) for values in (*right, nats)]
        return torch.stack((*each, torch.ones_like(nats)), dim=-1)

    def loss(self, model: Any, examples: slice) -> Tensor:
        """Return the mean negative log-probability of the right answers, a scalar, in nats."""
        return self.score(model, examples, 1)[0, 2] / len(self.examples[examples])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return all of :attr:`METRICS`; the perplexity is infinite where it overflows."""
        norm, plain, nats, count = sums
        values = (norm / count, plain / count, exp(nats / count))
        found = dict(zip(self.METRICS, values, strict=True))
        return {self.name: found.pop(self.name), **found}

    def likelihoods(
        self, model: Any, examples: slice, sub_models: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return the log-likelihood of each choice, and whether its tokens are the likeliest.

        The head of the model runs at the tokens of the answers only.

        :param model: a model that computes ``sub_models`` blocks of rows.
        :param examples: the examples.
        :param sub_models: number of sub-models.
        :returns: two tensors, (sub_models, examples, most choices): float64, 0 for choices that an
            example lacks; and bool, of which only that of an answer without alternatives is used
            (``True`` for all if there is no such answer).
        """
        part = self.examples[examples]
        most = max(len(example.choices) for example in part)
        rows = [row for example in part for row in example.rows]
        width, first = max(map(len, rows)), 0
        positions: list[int] = []
        wanted: list[int] = []
        owners: list[int] = []
        for number, example in enumerate(part):
            for index, choice in enumerate(example.choices):
                start = (first + choice.row) * width + choice.start
                positions += range(start, start + len(choice.tokens))
                wanted += choice.tokens
                owners += [number * most + index] * len(choice.tokens)
            first += len(example.rows)
        # What is to the right of a token does not change what a causal model computes for it.
        ids = self._tensor([_filled(row, width, row[-1]) for row in rows]).repeat(sub_models, 1)
        blocks = self._tensor(range(0, ids.numel(), len(rows) * width))
        places = (blocks[:, None] + self._tensor(positions)).flatten()
        targets = self._tensor(wanted).repeat(sub_models)[:, None]
        missed = torch.zeros_like(targets, dtype=torch.bool)
        if self._alone:
            tops, _, logs = likeliest(model, ids, 1, targets, places)
            missed = tops != targets
        else:
            logs = log_probabilities(model, ids, targets, places)
        owner = self._tensor(owners)

        def per_choice(values: Tensor) -> Tensor:
            grid = values.new_zeros(sub_models, len(part) * most, dtype=torch.float64)
            added = grid.index_add(1, owner, values.view(sub_models, -1).double())
            return added.view(sub_models, len(part), most)

        return per_choice(logs), per_choice(missed) == 0

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(list(values), device=self._device)


def _filled(values: list[int], width: int, fill: int) -> list[int]:
    return values + [fill] * (width - len(values))


def _numbers(choice: Choice) -> list[int]:
    return [choice.row, choice.start, choice.characters, *choice.tokens]


def make_multiple_choice(loaded: Pretrained, settings: TaskSettings) -> TaskMaker:
    """Return what makes the task ``multiple-choice``.

    :raises InputError: for an encoder.
    """
    if loaded.is_encoder:
        raise InputError(
            "multiple-choice compares the likelihoods of texts, and a "
            f"{loaded.model.config.model_type} encoder has none: give a causal language model"
        )
    # Each question is a text of its own, so `none` also gives it the start token.
    how = settings.start_token
    start = start_of_sequences(loaded.tokenizer, "auto" if how == "none" else how)
    most = longest(loaded, settings.seqlen)

    def task(draw: Draw) -> MultipleChoice:
        part = draw.part
        assert part is not None
        chosen = draw.rows(lambda part: questions(part, settings.prompt))
        asked = [questions(part, settings.prompt)[i] for i in chosen]
        examples = encoded_questions(part.split, asked, loaded.tokenizer, most, start)
        device = loaded.model.device
        return MultipleChoice(part.split, examples, device, settings.metric, start.start_token)

    return task
