"""Language modelling: perplexity, pseudo-perplexity, and the divergence from the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sos_deap.errors import InputError
from sos_deap.models.pretrained import Pretrained
from sos_deap.tasks.logits import logits_at, logits_in_slices
from sos_deap.tasks.self_text import sampled_sequences
from sos_deap.tasks.sequences import (
    Sequences,
    around,
    checked_seqlen,
    cut_sequences,
    longest,
    running_text,
)
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import Parts, Tasks, checked_metric

_UNSCORED = -100  # PyTorch's number for a target to leave out


class _OnSequences:
    """What the tasks on token sequences share."""

    greater_is_better = False
    one_pass = True
    shares_passes = True

    def __init__(self, sequences: Sequences, device: torch.device | str) -> None:
        self.sequences = sequences
        self._input_ids = sequences.input_ids.to(device)

    @property
    def seqlen(self) -> int:
        """Tokens in a sequence."""
        return self._input_ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens that a sub-model reads."""
        return len(self) * self.seqlen

    def __len__(self) -> int:
        return len(self._input_ids)

    def describe(self) -> dict[str, Any]:
        """See :meth:`Sequences.describe`."""
        return self.sequences.describe()


class Perplexity(_OnSequences):
    """Perplexity of a causal language model: exp of the mean negative log-likelihood per token.

    The first token of a sequence has no context and is not scored, as in the field's convention.
    """

    name = "perplexity"

    def __init__(self, sequences: Sequences, device: torch.device | str = "cpu") -> None:
        super().__init__(sequences, device)

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Sums (negative log-likelihood in nats, scored tokens), (sub-models, 2)."""
        ids = self._input_ids[examples].repeat(sub_models, 1)
        nats = torch.zeros(sub_models, dtype=torch.float64, device=ids.device)
        for positions, logits in logits_in_slices(model, ids):
            nats += _nats(logits, _targets(ids)[:, positions], sub_models)
        return _beside(nats, _scored(ids, sub_models))

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Perplexity; infinite where it exceeds what a float holds."""
        return {self.name: _exp(sums[0] / sums[1])}


class PseudoPerplexity(_OnSequences):
    """Pseudo-perplexity of a masked language model (Salazar et al., 2020, arXiv:1910.14659).

    Every token of a sequence but the special ones around it is masked alone and predicted from all
    the others; the metric is exp of the mean negative log-likelihood. An example is a sequence with
    one of its tokens masked, so a sequence costs as many forward passes as it has tokens.

    :param sequences: each with the special tokens around it.
    :param mask_token: the number of the mask token.
    :param around: how many special tokens stand before and after the text of each sequence.
    """

    name = "pseudo_perplexity"

    def __init__(
        self,
        sequences: Sequences,
        mask_token: int,
        around: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(sequences, device)
        self._mask_token = mask_token
        before, after = around
        rows, columns = torch.meshgrid(
            torch.arange(len(self._input_ids)),
            torch.arange(before, self.seqlen - after),
            indexing="ij",
        )
        self._examples = torch.stack((rows.flatten(), columns.flatten())).to(device)

    def __len__(self) -> int:
        return self._examples.shape[1]

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Sums (negative log-likelihood in nats, scored tokens), (sub-models, 2)."""
        rows, positions = self._examples[:, examples]
        ids = self._input_ids[rows]
        targets = ids.gather(1, positions[:, None])
        ids = ids.scatter(1, positions[:, None], self._mask_token)
        logits = logits_at(model, ids.repeat(sub_models, 1), positions.repeat(sub_models))
        nats = _nats(logits, targets[:, 0].repeat(sub_models), sub_models)
        return _beside(nats, len(rows))

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Pseudo-perplexity; infinite where it exceeds what a float holds."""
        return {self.name: _exp(sums[0] / sums[1])}


class KL(_OnSequences):
    """KL divergence of a sub-model's next-token distribution from the dense model's, in nats.

    The dense model's distribution is computed once and kept as its ``top_k`` likeliest tokens and
    one probability for all the others together. Summed over that partition, the divergence is at
    most the one over the vocabulary, and equal to it where ``top_k`` is the vocabulary's size.

    :param sequences: the text.
    :param model: the dense model; the task lies on its device.
    :param top_k: tokens kept at each position.
    :param metric: ``"kl"``, or ``"perplexity"``, which the same forward passes give.
    """

    def __init__(
        self, sequences: Sequences, model: Any, top_k: int = 64, metric: str | None = None
    ) -> None:
        super().__init__(sequences, model.device)
        self.name = checked_metric(metric, ("kl", "perplexity"))
        self.top_k = min(top_k, model.config.get_text_config().vocab_size)
        with torch.inference_mode():
            # A pass over 4,096 tokens or one sequence, whichever is more.
            together = self._input_ids.split(max(1, 4096 // self.seqlen))
            rows = [self._teacher(model, ids) for ids in together]
        tokens, logs = zip(*rows, strict=True)
        self._tokens = torch.cat(tokens)  # (sequences, seqlen, top_k)
        self._logs = torch.cat(logs)  # (sequences, seqlen, top_k + 1), log-probabilities

    def describe(self) -> dict[str, Any]:
        """The sequences, and how much of the dense model's distribution is kept."""
        kept = self._logs[..., :-1].exp().sum(-1).mean()
        return {
            **super().describe(),
            "top_k": self.top_k,
            "kept_probability": round(float(kept), 6),
        }

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Sums (divergence in nats, positions, negative log-likelihood, scored tokens)."""
        ids = self._input_ids[examples].repeat(sub_models, 1)
        teacher_tokens, teacher_logs = self._tokens[examples], self._logs[examples]
        divergence = torch.zeros(sub_models, dtype=torch.float64, device=ids.device)
        nats = torch.zeros_like(divergence)
        for positions, logits in logits_in_slices(model, ids):
            nats += _nats(logits, _targets(ids)[:, positions], sub_models)
            tokens = teacher_tokens[:, positions].long().repeat(sub_models, 1, 1)
            dense = teacher_logs[:, positions].repeat(sub_models, 1, 1)
            difference = dense.exp() * (dense - _log_partition(logits, tokens))
            divergence += difference.double().view(sub_models, -1).sum(1)
        positions_each = ids.numel() // sub_models
        counted = _beside(divergence, positions_each)
        return torch.cat((counted, _beside(nats, _scored(ids, sub_models))), dim=1)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The mean divergence per position, and the perplexity."""
        divergence, positions, nats, tokens = sums
        return {"kl": divergence / positions, "perplexity": _exp(nats / tokens)}

    def _teacher(self, model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
        parts = list(self._teacher_slices(model, ids))
        tokens, logs = zip(*parts, strict=True)
        return torch.cat(tokens, dim=1), torch.cat(logs, dim=1)

    def _teacher_slices(self, model: Any, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for _, logits in logits_in_slices(model, ids):
            tokens = logits.topk(self.top_k, dim=-1).indices
            yield tokens.to(torch.int32), _log_partition(logits, tokens)


def _log_partition(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of some tokens and, last, of all the others together, in float32."""
    logs = logits.float().log_softmax(-1).gather(-1, tokens)
    # 1 - sum loses digits where little is left: below 1e-6 the rest counts as that.
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp(min=1e-6)
    return torch.cat((logs, rest.log()), dim=-1)


def _targets(ids: Tensor) -> Tensor:
    """The next token at each position."""
    targets = ids.roll(-1, dims=1)
    targets[:, -1] = _UNSCORED  # the last position predicts nothing that is there
    return targets


def _scored(ids: Tensor, sub_models: int) -> int:
    return ids[:, 1:].numel() // sub_models


def _nats(logits: Tensor, targets: Tensor, sub_models: int) -> Tensor:
    """Each sub-model's negative log-likelihood in nats, (sub-models,)."""
    # In fp32, whatever the model computes in.
    losses = cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), ignore_index=_UNSCORED, reduction="none"
    )
    return losses.view(sub_models, -1).double().sum(1)


def _beside(sums: Tensor, count: int) -> Tensor:
    return torch.stack((sums, torch.full_like(sums, count)), dim=1)


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def make_perplexity(
    loaded: Pretrained, parts: Parts | None, settings: TaskSettings, seed: int
) -> Tasks:
    """Perplexity on both parts of a data set, or pseudo-perplexity of an encoder."""
    sequences, device = _sequences(loaded, parts, settings, seed), loaded.model.device
    if not loaded.is_encoder:
        calibration, heldout = (Perplexity(part, device) for part in sequences)
        return calibration, heldout
    before, after = around(loaded.tokenizer)
    mask = loaded.tokenizer.mask_token_id
    if mask is None:
        raise InputError("pseudo-perplexity needs a mask token, and the tokenizer has none")
    ends = len(before), len(after)
    first, second = (PseudoPerplexity(part, mask, ends, device) for part in sequences)
    return first, second


def make_kl(loaded: Pretrained, parts: Parts | None, settings: TaskSettings, seed: int) -> Tasks:
    """The divergence from the dense model on both parts of a data set."""
    if loaded.is_encoder:
        raise InputError(
            f"kl compares next-token distributions, and a {loaded.model.config.model_type} encoder "
            "has none: use the task perplexity"
        )
    calibration, heldout = (
        KL(sequences, loaded.model, settings.top_k, settings.metric)
        for sequences in _sequences(loaded, parts, settings, seed)
    )
    return calibration, heldout


def _sequences(
    loaded: Pretrained, parts: Parts | None, settings: TaskSettings, seed: int
) -> tuple[Sequences, Sequences]:
    encoder = loaded.is_encoder
    if encoder:
        length = longest(loaded, settings.seqlen)
    else:
        length = checked_seqlen(settings.seqlen, loaded.model.config)
    if parts is None:
        return _own_text(loaded, length, settings, seed)
    texts = running_text(parts, settings.text_column)
    calibration, heldout = (
        cut_sequences(
            part.split,
            documents,
            part.separator,
            loaded.tokenizer,
            length,
            samples=samples,
            seed=seed,
            whole=encoder,
        )
        for part, documents, samples in zip(
            parts, texts, (settings.samples, settings.heldout_samples), strict=True
        )
    )
    return calibration, heldout


def _own_text(
    loaded: Pretrained, seqlen: int, settings: TaskSettings, seed: int
) -> tuple[Sequences, Sequences]:
    if loaded.is_encoder:
        raise InputError("builtin:self needs a model that writes: give an encoder a data set")
    assert settings.samples is not None  # filled in for the task
    sample = partial(
        sampled_sequences, loaded.model, seqlen=seqlen, temperature=settings.temperature
    )
    return (
        sample("calibration", settings.samples, seed=seed),
        # Another stream of random numbers, whatever the seed of the search.
        sample("held-out", settings.heldout_samples or 4 * settings.samples, seed=seed + 2**32),
    )
