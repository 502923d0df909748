"""The choice of a search's winner among its finalists, on examples that the search has not used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.limits import Limits


@dataclass(frozen=True)
class Validation:
    """Chooses the winner of a search by a second score, on other examples.

    The best of many noisy scores overestimates its sub-model (selection bias). A second score of
    few finalists, on examples without influence on the search, is nearly free of that bias.

    :param score: function from a toolbox's ``evaluate`` and individuals to their fitness values on
        the validation examples, in order.
    :param finalists: number of best individuals to score, at least 1.
    :param evaluations: the cost of scoring them, in evaluations on all calibration examples.
    :param tokens: the cost of scoring them, in tokens.
    """

    score: Callable[[Callable[..., Any], Sequence[Any]], list[tuple[float, ...]]]
    finalists: int
    evaluations: float
    tokens: int

    def remaining(self, limits: Limits) -> Limits:
        """Return the limits of a search less the cost of its validation.

        :param limits: of the search and its validation together.
        :raises InputError: if nothing is left for the search.
        """
        left = {}
        for name in ("evaluations", "tokens"):
            given, cost = getattr(limits, name), getattr(self, name)
            if given is not None:
                if given <= cost:
                    raise InputError(
                        f"validating {self.finalists} finalists takes {math.ceil(cost)} {name}, "
                        f"and {given} are allowed: allow more {name}, or give fewer "
                        "validation_samples"
                    )
                left[name] = given - cost
        return replace(limits, **left)

    def choose(self, halloffame: Any, evaluate: Callable[..., Any]) -> None:
        """Order a hall of fame by the fitness on the validation examples.

        :param halloffame: DEAP's, ordered by the fitness on the calibration examples; its
            individuals get the other fitness.
        :param evaluate: the toolbox's, so that its decorators apply here as well.
        """
        finalists = list(halloffame)
        for individual, fitness in zip(finalists, self.score(evaluate, finalists), strict=True):
            individual.fitness.values = fitness
        halloffame.clear()
        halloffame.update(finalists)
