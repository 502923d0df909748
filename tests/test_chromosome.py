from __future__ import annotations

from itertools import combinations
from statistics import mean
from typing import Any

import numpy
import pytest
from deap import base, creator, tools
from hypothesis import given
from hypothesis import strategies as st

from sos_deap import Chromosome, statistics
from sos_deap.search.chromosome import (
    WORST_FITNESS,
    diversity,
    is_worst,
    random_genes,
    sparsity,
    within,
)


def test_chromosome_is_a_list_with_fitness_and_sparsity() -> None:
    chromosome = Chromosome([1, 0, 0, 1])
    assert chromosome == [1, 0, 0, 1]
    assert chromosome.sparsity == 0.5
    assert not chromosome.fitness.valid
    assert sparsity([]) == 0.0


def test_clones_do_not_share_genes_or_fitness() -> None:
    chromosome = Chromosome([1, 0])
    chromosome.fitness.values = (3.0,)
    clone = base.Toolbox().clone(chromosome)
    clone[0] = 0
    del clone.fitness.values
    assert chromosome == [1, 0]
    assert chromosome.fitness.values == (3.0,)
    assert type(clone) is Chromosome


@given(length=st.integers(1, 300), removed=st.integers(0, 300))
def test_the_bound_is_exact_at_whole_heads(length: int, removed: int) -> None:
    removed = min(removed, length)
    assert within(removed / length, removed / length)
    assert within(sparsity([0] * removed + [1] * (length - removed)), removed / length)
    assert not within((removed + 1) / length, removed / length)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int64"])
def test_individuals_that_are_arrays(dtype: str) -> None:
    """Of 300 genes and 300 individuals, whose sums small integers cannot hold."""
    one = Chromosome([1] * 280 + [0] * 20)
    individuals: list[Any] = []
    for number in range(300):
        individual: Any = numpy.array(one, dtype=dtype).view(Array)
        individual.fitness = one.fitness.__class__((float(number),))
        individuals.append(individual)
    assert sparsity(individuals[0]) == 20 / 300
    record = statistics().compile(individuals)
    assert record["diversity"]["hamming"] == 0.0
    assert record["sparsity"] == {"avg": pytest.approx(20 / 300), "min": 20 / 300, "max": 20 / 300}
    individuals[0][0] = 0
    assert diversity(individuals) == pytest.approx(299 / (300 * 300 * 299 / 2))


class Array(numpy.ndarray):
    """An individual as `creator.create` makes of an array."""

    fitness: Any


@given(st.integers(1, 200), st.floats(0, 0.99))
def test_random_genes_remove_a_fixed_share(length: int, initial: float) -> None:
    genes = random_genes(length, initial)
    assert set(genes) <= {0, 1}
    assert len(genes) == length
    assert genes.count(0) == round(length * initial)


def test_is_worst_knows_creator_individuals() -> None:
    creator.create("Cost", base.Fitness, weights=(1.0,))
    creator.create("Individual", list, fitness=creator.Cost)
    try:
        individual = creator.Individual([1, 0])
        assert is_worst(individual)
        individual.fitness.values = (-5.0,)
        assert not is_worst(individual)
        individual.fitness.values = (WORST_FITNESS,)
        assert is_worst(individual)
        assert sparsity(individual) == 0.5
    finally:
        del creator.Cost, creator.Individual


@pytest.mark.parametrize("worst_first", [True, False])
def test_the_worst_fitness_loses_every_comparison_that_nan_would_win(worst_first: bool) -> None:
    good, bad = Chromosome([1]), Chromosome([0])
    good.fitness.values, bad.fitness.values = (-1e9,), (WORST_FITNESS,)
    hall = tools.HallOfFame(1)
    hall.update([bad, good] if worst_first else [good, bad])
    assert hall[0] == good


POPULATIONS = st.integers(1, 30).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=2, max_size=12
    )
)


@given(POPULATIONS)
def test_diversity_is_the_mean_over_all_pairs(population: list[list[int]]) -> None:
    distances = [
        mean(a != b for a, b in zip(one, other, strict=True))
        for one, other in combinations(population, 2)
    ]
    assert diversity(population) == pytest.approx(mean(distances))


def test_the_ends_of_diversity() -> None:
    assert diversity([[1, 0, 1]] * 5) == 0.0 == diversity([[1, 0]]) == diversity([])
    assert diversity([[1, 0], [0, 1]]) == 1.0
    assert diversity([[0] * 7] * 3 + [[1] * 7] * 3) == pytest.approx(6 / (2 * 5))
