"""The choice of the winner among the finalists of a search, on examples that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.limits import Limits


@dataclass(frozen=True)
class Validation:
    """What chooses the winner of a search.

    The best of many noisy scores is partly the luckiest. Scored once more, on other examples, few
    have little room for luck.

    :param score: from a toolbox's ``evaluate`` and individuals to their fitness values on the
        validation examples.
    :param finalists: how many of the best to score.
    :param evaluations: what scoring so many costs, in evaluations on all calibration examples.
    :param tokens: the same in tokens.
    """

    score: Callable[[Callable[..., Any], Sequence[Any]], list[tuple[float, ...]]]
    finalists: int
    evaluations: float
    tokens: int

    def leaves(self, limits: Limits) -> Limits:
        """What is left of the limits of a search, as the choice is a part of it.

        :raises InputError: if nothing is.
        """
        left = {}
        for name in ("evaluations", "tokens"):
            given, cost = getattr(limits, name), getattr(self, name)
            if given is not None:
                if given <= cost:
                    raise InputError(
                        f"validating {self.finalists} finalists takes {math.ceil(cost)} {name}, "
                        f"and {given} are allowed: give more, or fewer validation_samples"
                    )
                left[name] = given - cost
        return replace(limits, **left)

    def choose(self, halloffame: Any, evaluate: Callable[..., Any]) -> None:
        """Order a hall of fame by the fitness on the validation examples.

        :param halloffame: DEAP's, the best by the calibration examples first; its individuals have
            the other fitness afterwards.
        :param evaluate: the toolbox's, which judges on these examples, too.
        """
        finalists = list(halloffame)
        for individual, fitness in zip(finalists, self.score(evaluate, finalists), strict=True):
            individual.fitness.values = fitness
        halloffame.clear()
        halloffame.update(finalists)
