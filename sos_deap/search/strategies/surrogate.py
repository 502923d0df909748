"""A surrogate model of the fitness: ridge regression on the genes of all evaluated individuals."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from sos_deap.search.strategies.strategy import value

_RECENT = 40  # number of predictions by which the surrogate is judged
_LEAST_TAU = 0.2

Vector = np.ndarray[Any, np.dtype[np.float64]]


def ridge_regression(masks: Any, fitness: Any, ridge: float) -> tuple[Vector, float]:
    """Fit the fitness of sub-models as a linear function of their genes.

    :param masks: 0/1 genes, of shape (sub-models, genes).
    :param fitness: fitness of each sub-model.
    :param ridge: penalty, in units of the mean variance of a gene over the sub-models.
    :returns: a coefficient per gene (the gain in fitness from keeping it), and the intercept, which
        is not penalized.
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
    """A linear model of the fitness, with a record of its prediction errors.

    :param prior: importance of each gene, the prior mean of its coefficient up to a factor, which
        is fitted. Default: a prior mean of 0.
    :param ridge: penalty, in units of the mean variance of a gene over the sub-models.
    """

    def __init__(self, prior: Sequence[float] | None = None, ridge: float = 0.1) -> None:
        self._ridge = ridge
        self._prior = None if prior is None else np.asarray(prior, float)
        self._masks: list[list[int]] = []
        self._fitness: list[float] = []
        self._model: tuple[Vector, float] | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)

    def learn(self, individuals: Sequence[Any]) -> None:
        """Record the predictions for evaluated individuals, then fit the model to them as well."""
        if self._model is not None:
            self._recent.extend(
                zip(self.predict(individuals), map(value, individuals), strict=True)
            )
        self._masks += [list(individual) for individual in individuals]
        self._fitness += map(value, individuals)
        self._model = ridge_regression(self._features(self._masks), self._fitness, self._ridge)

    def predict(self, chromosomes: Sequence[Sequence[int]]) -> list[float]:
        """Return the predicted fitness of chromosomes; :meth:`learn` must have been called."""
        assert self._model is not None
        worth, intercept = self._model
        found: list[float] = (self._features(chromosomes) @ worth + intercept).tolist()
        return found

    @property
    def trusted(self) -> bool:
        """Whether Kendall's tau of the last 40 predictions and fitness values is at least 0.2."""
        if len(self._recent) < _RECENT:
            return False
        predicted, found = zip(*self._recent, strict=True)
        return kendall_tau(predicted, found) >= _LEAST_TAU

    def _features(self, chromosomes: Sequence[Sequence[int]]) -> Vector:
        """Return the genes; with a prior also its sum over the kept genes, as one more feature."""
        masks = np.array([list(genes) for genes in chromosomes], float)
        if self._prior is None:
            return masks
        # Scaled so much larger than a gene that the penalty hardly affects its coefficient.
        scaled = self._prior / max(float(np.abs(self._prior).max()), 1e-12) * len(self._prior)
        return np.column_stack([masks, masks @ scaled])


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's tau-a (1938): (concordant - discordant pairs) / all pairs."""
    a, b = np.asarray(first), np.asarray(second)
    pairs = len(a) * (len(a) - 1)
    agreement = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return float(agreement.sum() / pairs) if pairs else 0.0
