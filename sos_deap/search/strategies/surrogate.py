"""What a sub-model's fitness will be: ridge regression on its genes, of all evaluations so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from sos_deap.search.strategies.strategy import value

_RECENT = 40  # predictions that say how far to trust the next ones
_LEAST_TAU = 0.2

Vector = np.ndarray[Any, np.dtype[np.float64]]


def ridge_regression(masks: Any, fitness: Any, ridge: float) -> tuple[Vector, float]:
    """What keeping each gene is worth in fitness, and the fitness without any.

    :param masks: (sub-models, genes) of 0/1.
    :param fitness: of each sub-model.
    :param ridge: the penalty, in units of the mean variance of a gene over the sub-models.
    :returns: a coefficient a gene, and the intercept, which has no penalty.
    """
    masks, fitness = np.asarray(masks, float), np.asarray(fitness, float)
    mean = masks.mean(axis=0)
    centred = masks - mean
    products = centred.T @ centred
    genes = len(products)
    penalty = ridge * max(np.trace(products) / genes, 1e-12)
    worth = np.linalg.solve(
        products + penalty * np.eye(genes), centred.T @ (fitness - fitness.mean())
    )
    return worth, float(fitness.mean() - mean @ worth)


class Surrogate:
    """Predicts fitness from genes, and knows how well it has done so.

    :param prior: an importance of each gene, the prior mean of what it is worth but for a factor,
        which is learned; ``None`` for a mean of 0.
    :param ridge: see :func:`ridge_regression`.
    """

    def __init__(self, prior: Sequence[float] | None = None, ridge: float = 0.1) -> None:
        self._ridge = ridge
        self._prior = None if prior is None else np.asarray(prior, float)
        self._masks: list[list[int]] = []
        self._fitness: list[float] = []
        self._model: tuple[Vector, float] | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)

    def learn(self, individuals: Sequence[Any]) -> None:
        """Take in evaluated individuals, after a look at what would have been predicted."""
        if self._model is not None:
            self._recent.extend(
                zip(self.predict(individuals), map(value, individuals), strict=True)
            )
        self._masks += [list(individual) for individual in individuals]
        self._fitness += map(value, individuals)
        self._model = ridge_regression(self._features(self._masks), self._fitness, self._ridge)

    def predict(self, chromosomes: Sequence[Sequence[int]]) -> list[float]:
        """The fitness of chromosomes; there is no telling before :meth:`learn`."""
        assert self._model is not None
        worth, intercept = self._model
        found: list[float] = (self._features(chromosomes) @ worth + intercept).tolist()
        return found

    @property
    def trusted(self) -> bool:
        """Whether Kendall's tau between recent predictions and what came out is at least 0.2."""
        if len(self._recent) < _RECENT:
            return False
        predicted, found = zip(*self._recent, strict=True)
        return kendall_tau(predicted, found) >= _LEAST_TAU

    def _features(self, chromosomes: Sequence[Sequence[int]]) -> Vector:
        """Genes; with a prior also its sum over those kept, whose coefficient is its factor."""
        masks = np.array([list(genes) for genes in chromosomes], float)
        if self._prior is None:
            return masks
        # So large beside a gene that the penalty on its factor is next to none.
        scaled = self._prior / max(float(np.abs(self._prior).max()), 1e-12) * len(self._prior)
        return np.column_stack([masks, masks @ scaled])


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-a (1938): concordant less discordant pairs, as a share of all pairs."""
    a, b = np.asarray(first), np.asarray(second)
    pairs = len(a) * (len(a) - 1)
    agreement = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return float(agreement.sum() / pairs) if pairs else 0.0
