"""Language modelling: perplexity and pseudo-perplexity, and how the tasks on text are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.models.loading import Pretrained
from sos_deap.tasks.data.draw import Draw, TaskMaker
from sos_deap.tasks.data.self_text import sampled_sequences
from sos_deap.tasks.data.sequences import (
    Sequences,
    alternating,
    checked_seqlen,
    cut_sequences,
    longest,
    running_text,
    special_tokens,
    start_of_sequences,
)
from sos_deap.tasks.divergence import KL
from sos_deap.tasks.likelihood import (
    CausalTask,
    SequenceTask,
    exp,
    stack_with_count,
)
from sos_deap.tasks.logits import logits_at
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import Task


class Perplexity(CausalTask):
    """Perplexity of a causal language model: exp of the mean negative log-likelihood per token.

    The first token of a sequence, or its start tokens, are context and are not scored, as usual.

    :param sequences: the token sequences.
    :param device: device of the model.
    :param every: only every so many positions of a sequence are scored, from the first one on.
    """

    name = "perplexity"

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return sums (negative log-likelihood in nats, scored tokens), (sub_models, 2)."""
        return stack_with_count(self.nats(model, examples, sub_models), self.scored(examples))

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the perplexity; infinity where it overflows."""
        return {self.name: exp(sums[0] / sums[1])}


class PseudoPerplexity(SequenceTask):
    """Pseudo-perplexity of a masked language model (Salazar et al., 2020, arXiv:1910.14659).

    Every token of a sequence, except the special tokens at its ends, is masked alone and predicted
    from all others; the metric is exp of the mean negative log-likelihood. An example is a sequence
    with one token masked, so a sequence costs as many forward passes as it has tokens.

    :param sequences: the token sequences, with special tokens at their ends.
    :param mask_token: id of the mask token.
    :param special: numbers of special tokens before and after the text of each sequence.
    :param device: device of the model.
    """

    name = "pseudo_perplexity"

    def __init__(
        self,
        sequences: Sequences,
        mask_token: int,
        special: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(sequences, device)
        self._mask_token = mask_token
        before, after = special
        rows, columns = torch.meshgrid(
            torch.arange(len(self._input_ids)),
            torch.arange(before, self.seqlen - after),
            indexing="ij",
        )
        self._examples = torch.stack((rows.flatten(), columns.flatten())).to(device)

    def __len__(self) -> int:
        return self._examples.shape[1]

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return sums (negative log-likelihood in nats, scored tokens), (sub_models, 2)."""
        rows, positions = self._examples[:, examples]
        ids = self._input_ids[rows]
        targets = ids.gather(1, positions[:, None])
        ids = ids.scatter(1, positions[:, None], self._mask_token)
        logits = logits_at(model, ids.repeat(sub_models, 1), positions.repeat(sub_models))
        logs = logits.float().log_softmax(1).gather(1, targets.repeat(sub_models, 1))
        return stack_with_count(-logs.view(sub_models, -1).double().sum(1), len(rows))

    def loss(self, model: Any, examples: slice) -> Tensor:
        """Return the mean negative log-likelihood of a masked token, in nats (a scalar)."""
        sums = self.score(model, examples, 1)[0]
        return sums[0] / sums[1]

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the pseudo-perplexity; infinity where it overflows."""
        return {self.name: exp(sums[0] / sums[1])}


class Reading(SequenceTask):
    """Token sequences that a model reads once, without a metric: the text of a refit.

    The language-modelling head is not computed.

    :param sequences: the token sequences.
    :param device: device of the model.
    :param options: further arguments of the model's forward method.
    """

    name = "reading"

    def __init__(self, sequences: Sequences, device: torch.device | str, **options: Any) -> None:
        super().__init__(sequences, device)
        self._options = options

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Run the layers on some examples; return zeros, (sub_models, 1)."""
        ids = self._input_ids[examples].repeat(sub_models, 1)
        model.base_model(input_ids=ids, **self._options)
        return torch.zeros(sub_models, 1, dtype=torch.float64)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return no metric."""
        return {}


def make_reading(loaded: Pretrained, settings: TaskSettings) -> Callable[..., Task]:
    """Return what makes the text of a refit of a causal or masked language model.

    Its arguments are one draw, or two of different data sets.
    """
    sequences, device = _sequences(loaded, settings), loaded.model.device
    options = {} if loaded.is_encoder else {"use_cache": False}
    return lambda *draws: Reading(reduce(alternating, map(sequences, draws)), device, **options)


def make_perplexity(loaded: Pretrained, settings: TaskSettings) -> TaskMaker:
    """Return what makes the task ``perplexity``: pseudo-perplexity for an encoder.

    :raises InputError: for an encoder whose tokenizer has no mask token.
    """
    sequences, device = _sequences(loaded, settings), loaded.model.device
    if not loaded.is_encoder:
        return lambda draw: Perplexity(sequences(draw), device, _every(settings, draw))
    special = special_tokens(loaded.tokenizer)
    mask = loaded.tokenizer.mask_token_id
    if mask is None:
        raise InputError(
            "pseudo-perplexity needs a mask token, and the tokenizer has none: give another model"
        )
    counts = len(special.before), len(special.after)
    return lambda draw: PseudoPerplexity(sequences(draw), mask, counts, device)


def make_kl(loaded: Pretrained, settings: TaskSettings) -> TaskMaker:
    """Return what makes the task ``kl``.

    :raises InputError: for an encoder.
    """
    if loaded.is_encoder:
        raise InputError(
            f"kl compares next-token distributions, and a {loaded.model.config.model_type} encoder "
            "has none: use the task perplexity"
        )
    sequences = _sequences(loaded, settings)

    def task(draw: Draw) -> KL:
        every = _every(settings, draw)
        return KL(sequences(draw), loaded.model, settings.top_k, settings.metric, every)

    return task


def _every(settings: TaskSettings, draw: Draw) -> int:
    """Return how many positions there are for each scored one; all of held-out text are scored."""
    return settings.score_every if draw.purpose == "calibration" else 1


def _sequences(loaded: Pretrained, settings: TaskSettings) -> Callable[[Draw], Sequences]:
    """Return what makes sequences from a draw: of a part's text, or generated by the model."""
    how, tokenizer = settings.start_token, loaded.tokenizer
    if loaded.is_encoder:
        if how != "auto":
            raise InputError(
                f"start_token is {how}: each sequence of an encoder has the special tokens "
                "of its tokenizer at its ends; give auto"
            )
        length, special = longest(loaded, settings.seqlen), special_tokens(tokenizer)
    else:
        length = checked_seqlen(settings.seqlen, loaded.model)
        special = start_of_sequences(tokenizer, how)

    def sequences(draw: Draw) -> Sequences:
        if draw.part is None:
            return _generated_text(loaded, length, settings, draw)
        documents = running_text(draw, settings.text_column)
        return cut_sequences(draw, documents, tokenizer, length, special)

    return sequences


def _generated_text(
    loaded: Pretrained, seqlen: int, settings: TaskSettings, draw: Draw
) -> Sequences:
    """Return sequences that the model generates, for the data set ``builtin:self``."""
    if loaded.is_encoder:
        raise InputError("builtin:self needs a model that writes text: give an encoder a data set")
    assert settings.samples is not None  # set by make_tasks
    # Each sequence is a separate text, so `none` also gives each a start token.
    how = settings.start_token
    bos = loaded.model.config.get_text_config().bos_token_id
    return sampled_sequences(
        loaded.model,
        draw.purpose,
        4 * settings.samples if draw.samples is None else draw.samples,
        seqlen,
        temperature=settings.temperature,
        seed=draw.seed,
        start=start_of_sequences(loaded.tokenizer, "auto" if how == "none" else how, bos),
    )
