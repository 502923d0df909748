"""Log-probabilities of tokens, without logits of all tokens and the whole vocabulary at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.modeling_outputs import BaseModelOutput

from sos_deap.models.temporary import replaced

#: Most logits at a time, by type of device: 8 MiB in float32 on a CPU, which fit its cache; 128 MiB
#: on an accelerator, since each tile costs several kernel launches.
MOST_LOGITS = {"cpu": 2**21}
MOST_LOGITS_ACCELERATOR = 2**25

#: Positions that read a weight of the head together, at least. With fewer, a matrix product waits
#: for memory: the head of a large vocabulary does not fit in any cache.
_TOGETHER = {"cpu": 256}
_TOGETHER_ACCELERATOR = 1024

#: Logits that are reduced at a time on a CPU, 1 MiB in float32. The allocator requests larger
#: blocks from the system each time, and a page fault for every 4 KiB takes longer than the sum.
_REDUCED_ON_CPU = 2**18


def body_of(model: Any) -> Any:
    """Return the layers of a model that predicts next tokens, without its head.

    :param model: a causal language model, or an encoder-decoder, whose decoder is returned.
    """
    body = model.get_decoder()
    # The head of ModernBERT's decoder has the name decoder.
    return model.base_model if body is model.get_output_embeddings() else body


def run_decoder(model: Any, input_ids: Tensor, source: Mapping[str, Tensor] | None = None) -> Any:
    """Run the layers of a model that predicts next tokens, without its head.

    :param model: a causal language model, or an encoder-decoder.
    :param input_ids: token ids, of an encoder-decoder those of its decoder, (rows, tokens).
    :param source: ``input_ids`` and ``attention_mask`` of the encoder; ``None`` for a causal model.
    :returns: the output of the decoder.
    """
    if source is None:
        return body_of(model)(input_ids=input_ids, use_cache=False)
    encoded = model.get_encoder()(**source)
    return body_of(model)(
        input_ids=input_ids,
        encoder_hidden_states=encoded.last_hidden_state,
        encoder_attention_mask=source["attention_mask"],
        use_cache=False,
    )


def log_probabilities(
    model: Any,
    input_ids: Tensor,
    wanted: Tensor,
    positions: Tensor | None = None,
    source: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return log-probabilities of next tokens, in float32.

    The layers run once. The head then runs on tiles of positions and vocabulary, each of which is
    reduced at once to what is needed of it, so that memory never holds positions x vocabulary, and
    no weight of the head is read for a few positions only.

    :param model: a causal language model, or an encoder-decoder.
    :param input_ids: token ids, of an encoder-decoder those of its decoder, (rows, tokens).
    :param wanted: the tokens at each position, (positions, n). The log-probability of a token
        outside the vocabulary, such as -100, is ``-inf``.
    :param positions: indices of positions in the flattened ``input_ids``; default: all.
    :param source: the encoder's inputs; see :func:`run_decoder`.
    :returns: (positions, n).
    """
    head = _Head(model, input_ids, positions, source)
    return torch.cat([_reduced(head.tiles(part), wanted[part])[1] for part in head.parts()])


def likeliest(
    model: Any,
    input_ids: Tensor,
    top_k: int,
    wanted: Tensor,
    positions: Tensor | None = None,
    source: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most likely next tokens, and log-probabilities.

    :param model: a causal language model, or an encoder-decoder.
    :param input_ids: token ids, of an encoder-decoder those of its decoder, (rows, tokens).
    :param top_k: number of tokens per position.
    :param wanted: further tokens at each position, (positions, n).
    :param positions: indices of positions in the flattened ``input_ids``; default: all.
    :param source: the encoder's inputs; see :func:`run_decoder`.
    :returns: the most likely tokens, (positions, top_k); their log-probabilities; those of
        ``wanted``.
    """
    head = _Head(model, input_ids, positions, source)
    parts = [_reduced(head.tiles(part), wanted[part], top_k) for part in head.parts()]
    tokens, found = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return tokens, found[:, :top_k], found[:, top_k:]


def partition(logs: Tensor) -> Tensor:
    """Append the log-probability of all other tokens to that of some, (..., top_k)."""
    # Below 1e-6 the difference 1 - sum has no exact digits, so 1e-6 is the least.
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp(min=1e-6)
    return torch.cat((logs, rest.log()), dim=-1)


def logits_at(model: Any, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Return a masked language model's logits at one position of each row.

    :param model: the model.
    :param input_ids: token ids, (rows, tokens).
    :param positions: position in each row, (rows,).
    :returns: logits, (rows, vocabulary).
    """
    body = model.base_model
    states = body(input_ids=input_ids)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    with _body_returning(body, states, states.last_hidden_state[rows, positions][:, None]):
        logits: Tensor = model(input_ids[:, :1]).logits
    return logits[:, 0]


class _Head:
    """The head of a model that predicts next tokens, on hidden states that it computed once.

    The model's own code runs after the projection, such as soft-capping or scaling of the logits.

    :param model: the model.
    :param input_ids: token ids, (rows, tokens).
    :param positions: indices in the flattened ``input_ids``; default: all.
    :param source: the encoder's inputs; see :func:`run_decoder`.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        positions: Tensor | None,
        source: Mapping[str, Tensor] | None,
    ) -> None:
        self._model, self._body = model, body_of(model)
        self._ids, self._encodes = input_ids.flatten(), source is not None
        self._states = run_decoder(model, input_ids, source)
        hidden = self._states.last_hidden_state.flatten(0, 1)
        self._hidden = hidden if positions is None else hidden[positions]
        self._projection = model.get_output_embeddings()
        # Encoder-decoders such as BART add a bias of the whole vocabulary to the logits.
        divisible = type(self._projection) is torch.nn.Linear and not self._encodes
        text = model.config.get_text_config()
        self._vocabulary = self._projection.out_features if divisible else text.vocab_size
        kind = input_ids.device.type
        most = MOST_LOGITS.get(kind, MOST_LOGITS_ACCELERATOR)
        together = _TOGETHER.get(kind, _TOGETHER_ACCELERATOR)
        self._positions, self._tokens = max(1, most // self._vocabulary), self._vocabulary
        if divisible and self._positions < together:
            self._positions, self._tokens = together, most // together

    def parts(self) -> list[slice]:
        """Return slices of the positions, each of which is computed in one or more tiles."""
        starts = range(0, len(self._hidden), self._positions)
        return [slice(start, start + self._positions) for start in starts]

    def tiles(self, part: slice) -> Iterator[tuple[int, Tensor]]:
        """Yield the first token of each tile, and its logits, (positions, tokens of the tile)."""
        hidden = self._hidden[part]
        ids = self._ids[: len(hidden)][None]  # only their number matters
        for start in range(0, self._vocabulary, self._tokens):
            tokens = slice(start, min(start + self._tokens, self._vocabulary))
            with ExitStack() as stack:
                stack.enter_context(_body_returning(self._body, self._states, hidden[None]))
                if self._tokens < self._vocabulary:
                    stack.enter_context(_narrowed(self._projection, tokens))
                logits = self._logits(ids, hidden[None])
            yield start, logits

    def _logits(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Run the model, of which only what follows the layers computes anything."""
        inputs: dict[str, Any] = {"input_ids": ids}
        if self._encodes:  # the decoder, which is replaced, does not read what was encoded
            encoded = BaseModelOutput(last_hidden_state=hidden)
            inputs = {"decoder_input_ids": ids, "encoder_outputs": encoded}
        logits: Tensor = self._model(**inputs, use_cache=False).logits[0]
        return logits


@contextmanager
def _narrowed(projection: torch.nn.Linear, tokens: slice) -> Iterator[None]:
    """Let the projection to the vocabulary compute the logits of some tokens only."""
    weight = projection.weight[tokens]
    bias = None if projection.bias is None else projection.bias[tokens]
    with replaced(projection, forward=lambda hidden: linear(hidden, weight, bias)):
        yield


def _reduced(
    tiles: Iterator[tuple[int, Tensor]], wanted: Tensor, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the most likely tokens, and their and the wanted tokens' log-probabilities."""
    sums, tops, tokens = [], [], []
    for start, logits in tiles:
        sums.append(_in_pieces(logits, wanted - start))
        if top_k:
            top = logits.float().topk(min(top_k, logits.shape[1]))
            tops.append(top.values)
            tokens.append(top.indices + start)
    # Of each wanted token all tiles but one have -inf, so its own sum is that one's logit.
    found = sums[0] if len(sums) == 1 else torch.stack(sums).logsumexp(0)
    normaliser, picked = found[:, :1], found[:, 1:]
    if not top_k:
        return wanted[:, :0], picked - normaliser
    top = torch.cat(tops, dim=1).topk(top_k)
    chosen = torch.cat(tokens, dim=1).gather(1, top.indices)
    return chosen, torch.cat((top.values, picked), dim=1) - normaliser


def _in_pieces(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the log of the sum of exponentials, and the wanted logits, (positions, 1 + n)."""
    most = _REDUCED_ON_CPU if logits.device.type == "cpu" else logits.numel()
    step = max(1, most // logits.shape[1])
    pieces = zip(logits.split(step), wanted.split(step), strict=True)
    return torch.cat([_summed(*piece) for piece in pieces])


def _summed(logits: Tensor, wanted: Tensor) -> Tensor:
    logits, width = logits.float(), logits.shape[1]  # for any dtype of the model
    picked = logits.gather(1, wanted.clamp(0, width - 1))
    outside = (wanted < 0) | (wanted >= width)
    picked = picked.masked_fill(outside, -math.inf)
    return torch.cat((logits.logsumexp(1, keepdim=True), picked), dim=1)


@contextmanager
def _body_returning(body: torch.nn.Module, states: Any, part: Tensor) -> Iterator[None]:
    """Replace the forward pass of a model's layers by part of a result computed before.

    :param body: the layers.
    :param states: their output.
    :param part: the hidden states to return, (rows, positions, width).
    """
    called = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal called
        called = True
        return type(states)(**{**states, "last_hidden_state": part})

    with replaced(body, forward=forward):
        yield
    if not called:
        raise RuntimeError(f"{type(body).__name__} is not what the language model runs")
