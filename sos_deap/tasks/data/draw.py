"""Drawing the examples of a task from a data set, so that no two tasks share one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sos_deap.errors import InputError
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.task import Task


class NoneLeftError(InputError):
    """All examples of a part belong to other tasks."""


@dataclass(frozen=True)
class Draw:
    """A draw of examples from one part of a data set.

    :param purpose: ``"calibration"``, ``"validation"``, ``"refit"``, ``"held-out"`` or ``"probe"``.
    :param part: the data; ``None`` if the model itself generates them.
    :param samples: number of examples, drawn at random without replacement (all if there are
        fewer); ``None`` for all, in order.
    :param seed: seed of the draw; the global random generators are not used.
    :param skip: number of examples at the start of the draw that belong to another task.
    :param excluded: parts whose examples are left out.
    """

    purpose: str
    part: Part | None
    samples: int | None
    seed: int
    skip: int = 0
    excluded: tuple[Part, ...] = ()

    def numbers(self, count: int) -> list[int]:
        """Return the indices of the examples to take, of ``count`` examples.

        :raises NoneLeftError: if another task takes all of them.
        """
        if self.samples is None:
            return list(range(count))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        chosen: list[int] = order[self.skip :][: self.samples].tolist()
        if count and not chosen:
            raise NoneLeftError(
                f"no example is left for {self.purpose}: there are {count}, and {self.skip} are "
                "taken; give fewer --samples"
            )
        return chosen

    def rows(self, texts_of: Callable[[Part], Sequence[Any]]) -> list[int]:
        """Return the indices of the rows to take, without those equal to a row of an excluded part.

        :param texts_of: returns the value of each row of a part by which rows are compared.
        :raises InputError: if no row is left.
        """
        assert self.part is not None
        texts = texts_of(self.part)
        excluded = {text for part in self.excluded for text in texts_of(part)}
        rest = [row for row, text in enumerate(texts) if text not in excluded]
        if not rest:
            raise InputError(
                f"every {self.purpose} example is also a held-out example: give other splits"
            )
        return [rest[i] for i in self.numbers(len(rest))]


#: Makes a task from a draw of examples.
TaskMaker = Callable[[Draw], Task]
