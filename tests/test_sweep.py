"""Which genes the search `sweep` flips, traced by hand."""

from __future__ import annotations

from typing import Any

from sos_deap.search.space import Part, Space
from sos_deap.search.strategies.sweep import Sweep

PARTS = (
    Part(0, "heads", 4),
    Part(0, "channels", 6, ordered=True),
    Part(1, "heads", 4),
    Part(1, "channels", 6, ordered=True),
)
#: The loss from the removal of each gene; the six lowest are 0.5, 1, 1.5, 2, 2.5 and 3.
WEIGHTS = [9, 1, 8, 7, 6, 5, 4, 3, 2.5, 0.5, 9, 9, 2, 9, 9, 8, 7, 6, 5, 1.5]


def evaluated(strategy: Sweep) -> list[Any]:
    """Return what a strategy proposes, with additive losses as its fitness."""
    individuals = strategy.generate()
    for one in individuals:
        lost = sum(weight for weight, gene in zip(WEIGHTS, one, strict=True) if not gene)
        one.fitness.values = (-lost,)
    return individuals


def test_later_sweeps_flip_the_genes_at_the_boundary() -> None:
    strategy = Sweep(Space(PARTS, 6 / 20, examples=40), [], budget=60, sweeps=2, near=0.4)
    first = evaluated(strategy)
    assert [one.count(0) for one in first] == [0] + [1] * 20
    strategy.update(first)
    current, *flips = evaluated(strategy)
    assert "".join(map(str, current)) == "1011" + "111000" + "1101" + "111110"
    flipped = [
        [i for i, (a, b) in enumerate(zip(current, flip, strict=True)) if a != b] for flip in flips
    ]
    # Of the channels the last kept and the first removed of each layer; of the heads the two most
    # valuable removed ones and the two least valuable kept ones.
    assert flipped == [[1], [2], [3], [6], [7], [12], [18], [19]]


def test_of_equal_losses_the_last_is_removed_first_as_parts_are_in_order() -> None:
    space = Space(PARTS[1:2], 2 / 6)
    assert list(space.keeping_best([1, 1, 1, 1, 1, 1])) == [1, 1, 1, 1, 0, 0]
    assert space.settled([1, 1, 0, 0, 0, 0], [1] * 6, [1] * 6) == [1, 1, 1, 1, 0, 0]
