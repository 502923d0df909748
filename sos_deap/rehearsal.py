"""All that follows a search, tried before it, so that it does not fail after hours."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sos_deap.errors import InputError, first_line
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.models.measure import try_out
from sos_deap.models.memory import is_out_of_memory
from sos_deap.models.saving import pruned_type
from sos_deap.models.sources import read_config
from sos_deap.tasks.samples import samples


def rehearse(evaluator: Evaluator, layout: str, length: int, new_tokens: int) -> None:
    """Save the unpruned model without its weights, let it write, and measure it once.

    Nothing is left behind, the model is as it was, and no random numbers are drawn.

    :param evaluator: the search's, with a tokenizer and held-out text.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param length: prompt length that the models will be measured on.
    :param new_tokens: tokens that they decode then.
    :raises InputError: for anything that fails, but for a lack of memory or of disk, which may have
        passed by then.
    """
    model: Any = evaluator.model
    assert evaluator.heldout is not None
    with TemporaryDirectory() as folder:
        with _tried("a pruned model of this kind cannot be saved"):
            _skeleton(evaluator, layout).save_pretrained(folder, state_dict={})
            read_config(folder)
        with _tried("its tokenizer cannot be saved"):
            evaluator.tokenizer.save_pretrained(Path(folder, "tokenizer"))
    if evaluator.heldout.one_pass:  # else the dense model's metrics are of texts that it writes
        with _tried("the model cannot write samples"):
            samples(evaluator.heldout, {"dense": model}, evaluator.tokenizer, 1, 2)
    with _tried("the model cannot be measured"):
        try_out(model, length, new_tokens)


def _skeleton(evaluator: Evaluator, layout: str) -> Any:
    """The model with settings of its own, of the class that a pruned one is saved as."""
    heads = evaluator.head_map
    twin: Any = copy.copy(evaluator.model)
    twin.config = copy.deepcopy(twin.config)
    if layout == "sliced":
        twin.config.kept_heads = heads.kept_heads([1] * len(heads))
        twin.__class__ = pruned_type(type(twin))
    return twin


@contextmanager
def _tried(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the libraries' own
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno):
            return
        raise InputError(f"{what} (tried before the search): {first_line(error)}") from error
