"""The metric ``kl`` of summarizers: the divergence on the summaries that the dense model writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sos_deap.progress import read_in_turn
from sos_deap.tasks.data.sequences import token_hash
from sos_deap.tasks.generation import Summarization
from sos_deap.tasks.likelihood import stack_with_count
from sos_deap.tasks.logits import likeliest, log_probabilities, partition, run_decoder
from sos_deap.tasks.task import Task

_TOKENS = 4096  # in a pass of the dense model


class SummaryDivergence:
    """KL divergence of a sub-model's next-token distribution from the dense model's, in nats.

    It is the mean over the tokens of the summaries that the dense model generates, each of which is
    predicted from the text and the tokens of the summary before it. These summaries are the data of
    sequence-level knowledge distillation (Kim and Rush, 2016). So a sub-model takes one forward
    pass, generates nothing, and is compared at every token. The dense model's distribution is
    stored as its likeliest tokens and one probability for all others, as in
    :class:`~sos_deap.tasks.divergence.KL`.

    :param task: the task on the same texts; its references are not used.
    :param model: the dense model.
    :param top_k: number of tokens stored per position.
    """

    name = "kl"
    greater_is_better = False
    one_pass = True
    shares_passes = True

    def __init__(self, task: Summarization, model: Any, top_k: int = 64) -> None:
        #: The task on the same texts.
        self.task = task
        self.top_k = min(top_k, model.config.get_text_config().vocab_size)
        with torch.inference_mode():
            pairs = _written(task, model)
            #: The summaries of the dense model, in the order of ``task``.
            self.summaries = [summary for _, summary in pairs]
            self._arrange(pairs, model.config.is_encoder_decoder)
            rows = [self._teacher(model, part) for part in _parts(self)]
        tokens, logs = zip(*rows, strict=True)
        self._tokens = torch.cat(tokens)  # (positions of all examples, top_k)
        self._logs = torch.cat(logs)  # (positions of all examples, top_k + 1)
        # 0, or NaN if the dense model's output is not finite.
        divergence = (self._logs - self._logs).sum(1).double().split(self._counts.tolist())
        #: The dense model's sums for each example, (examples, 2), as :meth:`score` returns them.
        self.reference_sums = torch.stack(
            (torch.stack([one.sum() for one in divergence]), self._counts.double()), dim=1
        )

    def _arrange(self, pairs: list[tuple[Tensor, Tensor]], encodes: bool) -> None:
        """Arrange the examples, the longest first.

        :param pairs: for each example the token ids before its summary, and those of the summary.
        :param encodes: whether an encoder reads the texts.
        """
        read = self.task.prompts.lengths.tolist() if encodes else [0] * len(pairs)
        sizes = [
            size + len(before) + len(summary) - 1
            for size, (before, summary) in zip(read, pairs, strict=True)
        ]
        order = sorted(range(len(pairs)), key=lambda row: -sizes[row])
        rows = [pairs[row] for row in order]
        # The last token of a summary is predicted, and not read.
        read_ids = [torch.cat((before, summary[:-1])) for before, summary in rows]
        # Tokens on the right of a row do not affect those before them, so none are masked.
        self._ids = pad_sequence(read_ids, batch_first=True)
        device = self._ids.device
        self._lengths = torch.tensor([len(ids) for ids in read_ids], device=device)
        self._starts = torch.tensor([len(before) - 1 for before, _ in rows], device=device)
        self._counts = torch.tensor([len(summary) for _, summary in rows], device=device)
        self._ends = [0, *self._counts.cumsum(0).tolist()]
        self._source = self.task.prompts.reordered(order) if encodes else None
        self.seqlen, self.tokens = sizes[order[0]], sum(sizes)
        self.reference_tokens = self.task.tokens + self.tokens

    def __len__(self) -> int:
        return len(self._ids)

    def describe(self) -> dict[str, Any]:
        """Return the source, size and hash of texts and summaries, and what is stored of each."""
        kept = self._logs[:, :-1].exp().sum(1).mean()
        return {
            **self.task.describe_texts(),
            "summary_tokens": self._ends[-1],
            "summary_hash": token_hash(self.summaries),
            "top_k": self.top_k,
            "kept_probability": round(float(kept), 6),
        }

    def read(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Run the layers without the head; return the decoder's hidden states."""
        ids, source = self._inputs(examples, sub_models)
        states: Tensor = run_decoder(model, ids, source).last_hidden_state
        return states

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return sums (divergence in nats, tokens of the summaries), (sub_models, 2)."""
        ids, source = self._inputs(examples, sub_models)
        part = self._part(examples)
        wanted, dense = self._tokens[part].long(), self._logs[part]
        logs = log_probabilities(
            model, ids, wanted.repeat(sub_models, 1), self._positions(examples, ids), source
        ).view(sub_models, *wanted.shape)
        difference = dense.exp() * (dense - partition(logs))
        return stack_with_count(difference.flatten(1).double().sum(1), len(wanted))

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the mean divergence per token of the summaries."""
        divergence, tokens = sums
        return {self.name: divergence / tokens}

    def _part(self, examples: slice) -> slice:
        """Return the range of the summaries' tokens that belongs to a range of examples."""
        start, stop, _ = examples.indices(len(self))
        return slice(self._ends[start], self._ends[stop])

    def _inputs(self, examples: slice, sub_models: int) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the token ids of some examples, and the inputs of an encoder."""
        longest = int(self._lengths[examples].max())
        ids = self._ids[examples, :longest].repeat(sub_models, 1)
        source = self._source
        return ids, None if source is None else source.batch(examples, sub_models)

    def _positions(self, examples: slice, ids: Tensor) -> Tensor:
        """Return the indices in the flattened ``ids`` of the positions that predict summaries.

        :param examples: a range of examples.
        :param ids: their token ids, repeated for each sub-model.
        """
        starts, counts = self._starts[examples], self._counts[examples]
        sub_models, width = len(ids) // len(starts), ids.shape[1]
        places = torch.arange(width, device=ids.device)
        scored = (places >= starts[:, None]) & (places < (starts + counts)[:, None])
        return scored.repeat(sub_models, 1).flatten().nonzero().flatten()

    def _teacher(self, model: Any, examples: slice) -> tuple[Tensor, Tensor]:
        """Return the dense model's likeliest tokens, and the log-probabilities of the partition."""
        ids, source = self._inputs(examples, 1)
        positions = self._positions(examples, ids)
        none = positions.new_empty((len(positions), 0))
        tokens, logs, _ = likeliest(model, ids, self.top_k, none, positions, source)
        return tokens.to(torch.int32), partition(logs)


class DivergenceAndTexts:
    """The divergence, and beside it the metrics of generated summaries, for the report.

    :param divergence: the task ``kl`` of summarizers.
    """

    name = SummaryDivergence.name
    greater_is_better = False
    one_pass = False
    shares_passes = True

    def __init__(self, divergence: SummaryDivergence) -> None:
        self._divergence, self.task = divergence, divergence.task
        self.tokens = divergence.tokens + self.task.tokens
        self.seqlen = max(divergence.seqlen, self.task.seqlen)
        self.reference_tokens = divergence.reference_tokens
        texts = self.task.decoded(divergence.summaries)
        each = [self.task.sums([text], slice(i, i + 1)) for i, text in enumerate(texts)]
        #: The dense model's sums for each example, as :meth:`score` returns them.
        self.reference_sums = torch.cat(
            (divergence.reference_sums, torch.stack(each).to(divergence.reference_sums)), dim=1
        )

    def __len__(self) -> int:
        return len(self.task)

    def describe(self) -> dict[str, Any]:
        """Return what both tasks return."""
        return {**self._divergence.describe(), **self.task.describe()}

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return the sums of both tasks; each numbers the examples in its own order."""
        both = (task.score(model, examples, sub_models) for task in (self._divergence, self.task))
        divergence, texts = both
        return torch.cat((divergence, texts.to(divergence)), dim=1)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the divergence and all text metrics."""
        divergence, tokens, *texts = sums
        return {**self._divergence.metrics([divergence, tokens]), **self.task.metrics(texts)}


def _parts(task: Task) -> Iterator[slice]:
    """Iterate over ranges of examples that the dense model reads together."""
    step = max(1, _TOKENS // task.seqlen)
    parts = [slice(i, min(i + step, len(task))) for i in range(0, len(task), step)]
    return read_in_turn(parts, [(part.stop - part.start) * task.seqlen for part in parts])


def _written(task: Summarization, model: Any) -> list[tuple[Tensor, Tensor]]:
    """Return for each example the token ids before its summary, and those of the summary."""
    ends = task.settings(model).eos_token_id
    ends = torch.tensor([] if ends is None else ends, dtype=torch.long, device=model.device)
    lengths = task.prompts.lengths.tolist()
    found = []
    for part in _parts(task):
        before, summaries = task.generated(model, part)
        for start, summary, length in zip(before, summaries, lengths[part], strict=True):
            ended = torch.isin(summary, ends).nonzero().flatten()[:1]
            # What follows the end token is padding.
            stop = int(ended) + 1 if len(ended) else len(summary)
            found.append((start[-length:], summary[:stop]))
    return found
