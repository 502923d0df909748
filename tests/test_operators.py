from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from deap import tools
from hypothesis import given
from hypothesis import strategies as st

from sos_deap import (
    Chromosome,
    cxFitnessWeighted,
    cxFitnessWeightedPaper,
    mutSparsityFlipBit,
    mutSwap,
)
from sos_deap.search.repairs import limit_sparsity, uniform_layers
from sos_deap.search.space import Part

GENES = st.lists(st.integers(0, 1), min_size=1, max_size=60)
FITNESS = st.floats(-1e6, 1e6)
CROSSOVERS = [cxFitnessWeighted, cxFitnessWeightedPaper]


def parent(genes: list[int], fitness: float) -> Chromosome:
    chromosome = Chromosome(genes)
    chromosome.fitness.values = (fitness,)
    return chromosome


@pytest.mark.parametrize("cross", CROSSOVERS)
@given(data=st.data(), genes=GENES, fitness=st.tuples(FITNESS, FITNESS))
def test_every_gene_comes_from_a_parent(
    cross: Any, data: Any, genes: list[int], fitness: tuple[float, float]
) -> None:
    other = data.draw(st.lists(st.integers(0, 1), min_size=len(genes), max_size=len(genes)))
    parents = parent(genes, fitness[0]), parent(other, fitness[1])
    children = cross(*parents)
    assert children[0] is parents[0]
    assert children[1] is parents[1]
    for child in children:
        assert len(child) == len(genes)
        assert all(g in pair for g, *pair in zip(child, genes, other, strict=True))


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [(-10, -30, 0.75), (-30, -10, 0.25), (0.9, 0.3, 0.75), (-5, -5, 0.5), (0, -4, 1), (3, -1, 1)],
)
def test_the_fitter_parent_gives_more_genes(first: float, second: float, share: float) -> None:
    """By hand: costs 10 and 30 give 30 / 40; gains 0.9 and 0.3 give 0.9 / 1.2."""
    genes = 20_000
    children = cxFitnessWeighted(parent([1] * genes, first), parent([0] * genes, second))
    for child in children:
        assert sum(child) / genes == pytest.approx(share, abs=0.02)


def test_the_paper_s_ratio_favours_the_worse_of_two_costs() -> None:
    genes = 20_000
    first, second = cxFitnessWeightedPaper(parent([1] * genes, -10), parent([0] * genes, -30))
    assert sum(first) / genes == pytest.approx(0.25, abs=0.02)
    assert [1 - gene for gene in first] == second


def test_algorithm_2_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """f1 = 3, f2 = 1: prob = 0.75. Draws 0.7, 0.8, 0.1, 0.75: parents 1, 2, 1, 2."""
    draws: Iterator[float] = iter([0.7, 0.8, 0.1, 0.75])
    monkeypatch.setattr(random, "random", lambda: next(draws))
    children = cxFitnessWeightedPaper(parent([1, 1, 0, 0], 3), parent([0, 0, 1, 1], 1))
    assert children == ([1, 0, 0, 1], [0, 1, 1, 0])


@pytest.mark.parametrize("cross", CROSSOVERS)
def test_parents_without_fitness_are_refused(cross: Any) -> None:
    with pytest.raises(ValueError, match="evaluate the population before mating"):
        cross(Chromosome([1]), parent([0], 1.0))


@given(GENES, st.floats(0, 1), st.integers(0, 2**32))
def test_without_bias_it_is_deap_s_flip_bit(genes: list[int], indpb: float, seed: int) -> None:
    random.seed(seed)
    (ours,) = mutSparsityFlipBit(Chromosome(genes), indpb)
    random.seed(seed)
    (stock,) = tools.mutFlipBit(Chromosome(genes), indpb)
    assert ours == stock


def test_bias_is_the_ratio_of_prune_to_restore_flips() -> None:
    count = 100_000
    (mutant,) = mutSparsityFlipBit([1] * count + [0] * count, indpb=0.05, bias=4)
    pruned, restored = mutant[:count].count(0), mutant[count:].count(1)
    assert pruned / restored == pytest.approx(4, rel=0.1)
    assert (pruned + restored) / (2 * count) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(("indpb", "bias"), [(0.1, -1), (1.5, 1), (0.6, 9)])
def test_impossible_rates_are_refused(indpb: float, bias: float) -> None:
    with pytest.raises(ValueError, match="bias"):
        mutSparsityFlipBit([1], indpb, bias)


@given(GENES, st.integers(1, 5))
def test_a_swap_restores_as_many_as_it_removes(genes: list[int], moves: int) -> None:
    individual = Chromosome(genes)
    (mutant,) = mutSwap(individual, moves)
    assert mutant is individual and sum(mutant) == sum(genes)
    exchanges = sum(old > new for old, new in zip(genes, mutant, strict=True))
    possible = min(moves, sum(genes), len(genes) - sum(genes))
    assert min(1, possible) <= exchanges <= possible


@given(GENES, st.floats(0, 1))
def test_repair_only_restores_heads_and_only_as_many_as_needed(
    genes: list[int], maximum: float
) -> None:
    def remove_all(individual: list[int]) -> tuple[list[int]]:
        before[:] = individual
        return (individual,)

    before: list[int] = []
    (child,) = limit_sparsity(maximum)(remove_all)(list(genes))
    most = int(maximum * len(genes) + 1e-9)
    assert child.count(0) == min(before.count(0), most)
    assert all(after >= gene for after, gene in zip(child, before, strict=True))


@given(data=st.data(), layers=st.integers(1, 6), size=st.integers(2, 8))
def test_uniform_layers_keep_one_of_the_counts_next_to_the_mean(
    data: Any, layers: int, size: int
) -> None:
    genes = data.draw(st.lists(st.integers(0, 1), min_size=layers * size, max_size=layers * size))
    counts = data.draw(st.lists(st.integers(1, size), min_size=1, unique=True))
    mean = sum(genes) / layers
    parts = [Part(layer, "heads", size) for layer in range(layers)]
    (child,) = uniform_layers(parts, {"heads": counts})(lambda given: (given,))(list(genes))
    kept = {sum(child[start : start + size]) for start in range(0, len(child), size)}
    assert len(kept) == 1 and kept <= set(counts)
    (count,) = kept
    between = range(*sorted((count, round(mean))))
    assert not any(c for c in counts if c in between and c not in (count, round(mean)))
    for start in range(0, len(child), size):  # a layer only loses heads, or only regains some
        pairs = list(zip(genes[start : start + size], child[start : start + size], strict=True))
        assert not ((0, 1) in pairs and (1, 0) in pairs)


def test_uniform_layers_keep_the_mean_on_average() -> None:
    random.seed(4)
    operator = uniform_layers([Part(0, "heads", 10), Part(1, "heads", 10)], {"heads": [5, 9]})(
        lambda given: (given,)
    )
    means = [sum(operator([1] * 7 + [0] * 3 + [1] * 6 + [0] * 4)[0]) / 2 for _ in range(4000)]
    assert set(means) == {5.0, 9.0}
    assert sum(means) / len(means) == pytest.approx(6.5, abs=0.1)
