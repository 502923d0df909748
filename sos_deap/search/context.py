"""What searches read from a toolbox besides DEAP's aliases: one object, ``toolbox.search``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from sos_deap.search.chromosome import sparsity as share_of_zeros
from sos_deap.search.space import Space
from sos_deap.search.validation import Validation


def _never_interrupted(check: Callable[[], Any]) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class SearchContext:
    """What a search needs beyond DEAP's aliases, as ``toolbox.search``.

    :func:`sos_deap.register` sets it; a toolbox without it has all the defaults below. To replace
    one field: ``toolbox.search = dataclasses.replace(toolbox.search, validation=None)``.

    :param space: the space that strategies choose from; default: none, so that no strategy runs.
    :param sparsity: function from genes to the share that they remove, from 0 to 1; default: the
        share of genes that are 0.
    :param validation: chooses the winner at the end of a search; default: no validation.
    :param spent: function without arguments that returns the cost of all evaluations so far, a
        mapping with the keys ``evaluations`` and ``tokens``; default: the evaluations in the
        logbook, and no tokens.
    :param interruptible: function from a ``check`` to a context manager, inside which ``check()``
        is called before each forward pass and may raise to end the evaluation; default: ``check``
        is never called, so that a limit on seconds holds between generations only.
    """

    space: Space | None = None
    sparsity: Callable[[Sequence[int]], float] = share_of_zeros
    validation: Validation | None = None
    spent: Callable[[], Mapping[str, float]] | None = None
    interruptible: Callable[[Callable[[], Any]], AbstractContextManager[Any]] = _never_interrupted

    def spent_after(self, logbook: Any) -> Mapping[str, float]:
        """Return the cost of a search so far, by ``spent`` or else by its logbook.

        :param logbook: DEAP's, whose rows have ``nevals``.
        :returns: ``evaluations`` and ``tokens``.
        """
        if self.spent is None:
            return {"evaluations": sum(logbook.select("nevals")), "tokens": 0}
        return self.spent()


def context_of(toolbox: Any) -> SearchContext:
    """Return ``toolbox.search``, or the defaults for a toolbox without it."""
    context: SearchContext = getattr(toolbox, "search", SearchContext())
    return context
