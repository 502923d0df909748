"""Ridge regression from sums over tokens, with a damping that is chosen on other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Dampings to choose from, as shares of the mean square of an input.
DAMPINGS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)


class SingularError(ArithmeticError):
    """A least-squares system without a unique solution."""


class Sums:
    """Sums over tokens that determine a least-squares solution: inputs X, wanted outputs Y.

    :param inputs: number of inputs.
    :param outputs: number of outputs.
    :param like: a tensor on the device to compute on.
    """

    def __init__(self, inputs: int, outputs: int, like: Tensor) -> None:
        # A batch is multiplied in float32, which is fast, and added in float64, as sums over many
        # batches lose digits; some devices have no float64.
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        self.xx = torch.zeros(inputs, inputs, dtype=dtype, device=like.device)
        self.xy = torch.zeros(inputs, outputs, dtype=dtype, device=like.device)
        self.yy = torch.zeros((), dtype=dtype, device=like.device)
        self.tokens = 0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add tokens.

        :param inputs: (tokens, inputs).
        :param outputs: (tokens, outputs).
        """
        x, y = inputs.float(), outputs.float()
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.square().sum()
        self.tokens += len(x)

    def plus(self, other: Sums) -> Sums:
        """Return the sums over the tokens of both; these sums are overwritten."""
        self.xx += other.xx
        self.xy += other.xy
        self.yy += other.yy
        self.tokens += other.tokens
        return self

    def reproducing(self, weight: Tensor, columns: Tensor) -> Sums:
        """Return the sums for some of the inputs, where the wanted outputs are those of all inputs.

        :param weight: the weight of all inputs, (outputs, inputs).
        :param columns: indices of the inputs.
        """
        found = Sums(len(columns), len(weight), weight)
        weight, columns = weight.to(found.xx.dtype), columns.to(weight.device)
        outputs = self.xx.to(found.xx.dtype) @ weight.T
        found.xx += self.xx[columns][:, columns]
        found.xy += outputs[columns]
        found.yy += (weight.T * outputs).sum()
        found.tokens = self.tokens
        return found

    @property
    def is_finite(self) -> bool:
        """Whether no input or output was infinite or not a number."""
        return bool(torch.isfinite(self.xx).all() and torch.isfinite(self.xy).all())

    def error(self, weight: Tensor) -> float:
        """Return the sum of squared errors of a weight over the squares of the wanted outputs.

        :param weight: (outputs, inputs).
        """
        fitted = torch.einsum("oi,ij,oj->", weight, self.xx, weight)
        return float((fitted - 2 * (weight.T * self.xy).sum() + self.yy) / self.yy)

    def solution(self, weight: Tensor, damping: float) -> Tensor:
        """Return the weight W' that minimises ``|X W'^T - Y|^2 + c |W' - W|^2``.

        With more damping the solution is nearer to the present weight. If rounding makes the system
        singular in spite of the damping, it is solved with ten times as much, and so on.

        :param weight: the present weight W, (outputs, inputs).
        :param damping: c, as a share of the mean square of an input times the number of tokens.
        :raises SingularError: if the damping is 0 and the system is singular.
        """
        if damping == 0 and self.tokens < len(self.xx):
            raise SingularError
        # Inputs may all be 0: the present weight is then the solution.
        strength = damping * self.xx.diagonal().mean().clamp(min=1e-30)
        system = self.xx.clone()
        system.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed and damping == 0:
            raise SingularError
        if failed:
            return self.solution(weight, 10 * damping)
        return torch.cholesky_solve(self.xy + strength * weight.T, factor).T


@dataclass(frozen=True)
class Fit:
    """A weight that was fitted to the wanted outputs.

    :param weight: the weight, (outputs, inputs).
    :param damping: the damping; ``None`` if the present weight was the best.
    :param before: squared error of the present weight over the squares of the wanted outputs.
    :param after: that of the fitted one, on the same tokens.
    """

    weight: Tensor
    damping: float | None
    before: float
    after: float


def fitted(
    weight: Tensor, training: Sums, validation: Sums, dampings: Sequence[float] = DAMPINGS
) -> Fit:
    """Fit a weight, with the damping that has the least error on tokens it was not fitted to.

    :param weight: the present weight, (outputs, inputs). If no damping has a lower error, it stays.
    :param training: sums over most tokens.
    :param validation: sums over the other tokens; with one damping they may be empty. The final
        solution is for all tokens.
    :param dampings: dampings to choose from.
    :raises SingularError: if the only damping is 0 and the system is singular.
    """
    present = weight.to(training.xx.dtype)
    choice: float | None = dampings[0]
    if len(dampings) > 1:
        errors: dict[float | None, float] = {None: validation.error(present)}
        for damping in dampings:
            errors[damping] = validation.error(training.solution(present, damping))
        choice = min(errors, key=errors.__getitem__)
    every = training.plus(validation)
    best = present if choice is None else every.solution(present, choice)
    return Fit(best, choice, every.error(present), every.error(best))


def bias_fitted(weight: Tensor, every: Sums) -> Fit:
    """Fit the last column of a weight, whose input is 1, and keep the others.

    :param weight: the present weight, (outputs, inputs).
    :param every: sums over the tokens.
    """
    present = weight.to(every.xx.dtype)
    found = present.clone()
    found[:, -1] += (every.xy[-1] - present @ every.xx[-1]) / every.tokens
    return Fit(found, None, every.error(present), every.error(found))
