"""Test the steps after a search before it starts, so that they do not fail hours later."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel

from sos_deap.errors import InputError, first_line
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.models.length import most_tokens
from sos_deap.models.measure import try_out
from sos_deap.models.memory import is_out_of_memory
from sos_deap.models.saving import pruned_type
from sos_deap.models.sources import read_config
from sos_deap.tasks.samples import samples


def rehearse(evaluator: Evaluator, layout: str, length: int, new_tokens: int) -> None:
    """Save the dense model without its weights, generate a sample, and measure the model once.

    No files remain, the model is unchanged, and no random numbers are drawn.

    :param evaluator: the evaluator of the search, with a tokenizer and held-out data.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param length: prompt length in tokens that the models will be measured on.
    :param new_tokens: number of tokens to decode in the measurement.
    :raises InputError: for any failure but a lack of memory or disk space, which may be temporary.
    """
    model: Any = evaluator.model
    assert evaluator.heldout is not None
    with TemporaryDirectory() as folder:
        with _tried("a pruned model of this kind cannot be saved"):
            _skeleton(evaluator, layout).save_pretrained(folder, state_dict={})
            read_config(folder)
        with _tried("its tokenizer cannot be saved"):
            evaluator.tokenizer.save_pretrained(Path(folder, "tokenizer"))
    if evaluator.heldout.one_pass:  # else the dense model's metrics generate text anyway
        with _tried("the model cannot generate samples"):
            samples(evaluator.heldout, {"dense": model}, evaluator.tokenizer, 1, 2)
    with _tried("the model cannot be measured"):
        try_out(model, length, new_tokens)


def timed_lengths(model: PreTrainedModel, seqlen: int) -> tuple[int, int]:
    """Return the prompt length and the number of new tokens to time models on.

    :param model: the dense model.
    :param seqlen: tokens in an example of the task, of which the two are at most the sum.
    """
    seqlen = min(seqlen, most_tokens(model) or seqlen)  # `seqlen` of beams is that of all of them
    new_tokens = min(16, seqlen // 2)
    return min(512, seqlen - new_tokens), new_tokens if new_tokens > 1 else 0


def _skeleton(evaluator: Evaluator, layout: str) -> Any:
    """Return the model with a copy of its config, as an object of the pruned model's class."""
    genes = evaluator.gene_map
    twin: Any = copy.copy(evaluator.model)
    twin.config = copy.deepcopy(twin.config)
    if layout == "sliced":
        twin.config.kept_heads = genes.kept_heads([1] * len(genes))
        twin.config.kept_channels = [site.units for site in genes.feed_forward]
        twin.config.kept_experts = [site.units for site in genes.experts]
        twin.__class__ = pruned_type(type(twin))
    return twin


@contextmanager
def _tried(what: str) -> Iterator[None]:
    """Turn errors of libraries into an :class:`InputError` that begins with ``what``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # libraries raise many types
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno):
            return
        raise InputError(f"{what} (tried before the search): {first_line(error)}") from error
