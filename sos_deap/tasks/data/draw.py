"""Which examples of a data set a task is made of, so that no two parts share one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sos_deap.errors import InputError
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.task import Task


@dataclass(frozen=True)
class Draw:
    """Examples of one part of a data set.

    :param purpose: ``"calibration"``, ``"validation"`` or ``"held-out"``.
    :param part: where they are from; ``None`` where the model writes them.
    :param samples: how many to draw at random without repetition, or all there are if fewer;
        ``None`` for all, in order.
    :param seed: for the draw; Python's and numpy's generators are not touched.
    :param skip: how many of those drawn first are another task's.
    :param unseen: a part whose examples are left out.
    """

    purpose: str
    part: Part | None
    samples: int | None
    seed: int
    skip: int = 0
    unseen: Part | None = None

    def numbers(self, count: int) -> list[int]:
        """Which of ``count`` examples to take.

        :raises InputError: if another task takes them all.
        """
        if self.samples is None:
            return list(range(count))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        chosen: list[int] = order[self.skip :][: self.samples].tolist()
        if count and not chosen:
            raise InputError(
                f"no example is left for {self.purpose}: there are {count}, and {self.skip} are "
                "for calibration; give fewer --samples"
            )
        return chosen

    def rows(self, texts_of: Callable[[Part], Sequence[Any]]) -> list[int]:
        """Which rows of the part to take, none of those that are equal to an unseen one.

        :param texts_of: from a part to what must not be equal, one for each row.
        :raises InputError: if that leaves none.
        """
        assert self.part is not None
        texts = texts_of(self.part)
        unseen = set(texts_of(self.unseen)) if self.unseen else set()
        rest = [row for row, text in enumerate(texts) if text not in unseen]
        if not rest:
            raise InputError(f"every {self.purpose} example is held out too: give other splits")
        return [rest[i] for i in self.numbers(len(rest))]


#: Makes a task of examples.
Make = Callable[[Draw], Task]
