"""The paper's crossover and mutation, as DEAP operators, and the repair that keeps S binding.

Like DEAP's own, they edit individuals in place, return them in a tuple, and draw from Python's
global generator.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from sos_deap.search.chromosome import sparsity, within
from sos_deap.search.prior import drawn
from sos_deap.search.space import exchanged
from sos_deap.search.strategies.exchange import few_moves

Crossover = Callable[[Any, Any], tuple[Any, Any]]


def cxFitnessWeighted(ind1: Any, ind2: Any) -> tuple[Any, Any]:
    """Fitness-weighted crossover (Algorithm 2), repaired: sign-aware, two full children.

    Each gene of each child is drawn on its own, from parent 1 with probability
    ``f1 / (f1 + f2)``. For costs (negative fitness, as in Equation 1) that ratio would favour the
    worse parent, so it is taken of the other parent's cost, ``f2 / (f1 + f2)``.

    :param ind1: first parent, evaluated; becomes the first child.
    :param ind2: second parent, evaluated; becomes the second child.
    :returns: the two children.
    :raises ValueError: if a parent has not been evaluated.
    """
    return _cross(ind1, ind2, _share_of_first(*_fitnesses(ind1, ind2)), complement=False)


def cxFitnessWeightedPaper(ind1: Any, ind2: Any) -> tuple[Any, Any]:
    """Fitness-weighted crossover as printed in Algorithm 2, whatever the fitness' sign.

    With ``prob = f1 / (f1 + f2)`` (line 2) and one draw per gene (line 6). Lines 7 and 9 give the
    gene to one child only, whose lengths then add up to one chromosome; here the other child gets
    the other parent's gene, the shortest completion to two chromosomes.

    :param ind1: first parent, evaluated; becomes the first child.
    :param ind2: second parent, evaluated; becomes the second child.
    :returns: the two children.
    :raises ValueError: if a parent has not been evaluated.
    """
    first, second = _fitnesses(ind1, ind2)
    total = first + second
    return _cross(ind1, ind2, first / total if total else 0.5, complement=True)


def mutSparsityFlipBit(
    individual: Any, indpb: float, bias: float = 1.0, weights: Sequence[float] | None = None
) -> tuple[Any]:
    """Flip-bit mutation that can prefer to prune.

    A kept head is removed with probability ``2 * indpb * bias / (1 + bias)``, and a removed one
    restored with ``2 * indpb / (1 + bias)``: mean ``indpb``, ratio ``bias``. With a bias of 1
    it is the paper's flip-bit mutation, DEAP's ``mutFlipBit``, draw for draw.

    :param individual: the individual to mutate.
    :param indpb: mean probability of a flip per gene.
    :param bias: ratio of prune flips to restore flips for equally many kept and removed heads.
    :param weights: how much sooner than the average each gene is removed, of mean 1 and at most 2;
        restored it is the later. ``None`` for all alike.
    :returns: the individual.
    :raises ValueError: if a probability or the bias is out of range.
    """
    if bias < 0:
        raise ValueError(f"bias is {bias}: give 0 or more (1 flips both ways alike)")
    remove, restore = 2 * indpb * bias / (1 + bias), 2 * indpb / (1 + bias)
    if not (0 <= remove <= 1 and 0 <= restore <= 1):
        raise ValueError(
            f"indpb {indpb} with bias {bias} makes flip probabilities of {remove:.3g} and "
            f"{restore:.3g}: they must lie in [0, 1]"
        )
    for i, gene in enumerate(individual):
        weight = 1.0 if weights is None else weights[i]
        if random.random() < (remove * weight if gene else restore * (2 - weight)):
            individual[i] = type(gene)(not gene)
    return (individual,)


def mutSwap(individual: Any, moves: int = 3) -> tuple[Any]:
    """Exchange mutation: as many heads are given back as removed, so that the sparsity stays.

    The number of exchanges is the less of two uniform draws from 1 to ``moves``, as in EvoPress
    (Sieberling et al., 2024).

    :param individual: the individual to mutate.
    :param moves: most exchanges.
    :returns: the individual.
    :raises ValueError: if ``moves`` is below 1.
    """
    if moves < 1:
        raise ValueError(f"moves is {moves}: give at least 1")
    individual[:] = exchanged(individual, few_moves(moves))
    return (individual,)


def cxBalanced(ind1: Any, ind2: Any, indpb: float = 0.5) -> tuple[Any, Any]:
    """Crossover at constant sparsity: both children remove as many heads as their first parents.

    Of the genes in which the parents differ, those that only the first keeps are paired at random
    with those that only the second keeps; a pair changes sides with probability ``indpb``. What the
    parents agree on stays, and nothing has to be repaired.

    :param ind1: first parent; becomes the first child.
    :param ind2: second parent; becomes the second child.
    :param indpb: the probability that a pair changes sides.
    :returns: the two children.
    """
    mine = [i for i, (a, b) in enumerate(zip(ind1, ind2, strict=True)) if a > b]
    yours = [i for i, (a, b) in enumerate(zip(ind1, ind2, strict=True)) if a < b]
    pairs = min(len(mine), len(yours))
    for pair in zip(random.sample(mine, pairs), random.sample(yours, pairs), strict=True):
        if random.random() < indpb:
            for i in pair:
                ind1[i], ind2[i] = ind2[i], ind1[i]
    return ind1, ind2


def limit_sparsity(
    max_sparsity: float,
    measure: Callable[[Sequence[int]], float] = sparsity,
    weights: Sequence[float] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for ``toolbox.decorate`` that keeps an operator's children feasible.

    A child with too many heads removed gets heads back, drawn at random among the removed ones.

    :param max_sparsity: largest share removed.
    :param measure: from genes to the share that they remove, which no further head may lower.
    :param weights: how much sooner than the average each gene goes, below 2: the later, the sooner
        it comes back. ``None`` for all alike.
    :returns: the decorator, for ``individual``, ``mate`` and ``mutate``.
    """

    def give_back(child: Any) -> None:
        while not within(share := measure(child), max_sparsity):
            removed = [i for i, gene in enumerate(child) if not gene]
            # As many as it takes where all genes weigh the same, else about as many.
            excess = math.ceil(len(removed) * (1 - max_sparsity / share) - 1e-9)
            count = max(1, excess)
            if weights is None:
                back = random.sample(removed, count)
            else:
                back = drawn(removed, [2 - weight for weight in weights], count)
            for i in back:
                child[i] = 1

    return _repair(give_back)


def uniform_layers(
    genes_per_layer: int, counts: Sequence[int]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for ``toolbox.decorate`` that keeps equally many heads in every layer.

    That number is one of the two counts around the mean over the layers, drawn so that the mean is
    kept on average; within a layer the heads to remove or to give back are drawn at random.

    :param genes_per_layer: genes in a layer.
    :param counts: the numbers of genes that a layer may keep.
    :returns: the decorator, for ``mate`` and ``mutate``.
    """
    counts = sorted(counts)

    def even_out(child: Any) -> None:
        mean = sum(child) / len(child) * genes_per_layer
        below = max((count for count in counts if count <= mean), default=counts[0])
        above = min((count for count in counts if count >= mean), default=counts[-1])
        keep = above if random.random() * (above - below) < mean - below else below
        for start in range(0, len(child), genes_per_layer):
            layer = range(start, start + genes_per_layer)
            kept, gone = ([i for i in layer if bool(child[i]) == gene] for gene in (True, False))
            for i in random.sample(kept, max(0, len(kept) - keep)):
                child[i] = 0
            for i in random.sample(gone, max(0, keep - len(kept))):
                child[i] = 1

    return _repair(even_out)


def _repair(mend: Callable[[Any], None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that mends, in place, every individual an operator returns."""

    def decorate(operator: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operator)
        def feasible(*individuals: Any, **parameters: Any) -> Any:
            children = operator(*individuals, **parameters)
            for child in children:
                mend(child)
            return children

        return feasible

    return decorate


def _fitnesses(ind1: Any, ind2: Any) -> tuple[float, float]:
    if not (ind1.fitness.valid and ind2.fitness.valid):
        raise ValueError(
            "fitness-weighted crossover was given a parent without fitness: "
            "evaluate the population before mating it"
        )
    return ind1.fitness.wvalues[0], ind2.fitness.wvalues[0]


def _share_of_first(first: float, second: float) -> float:
    """The fitter parent's share, larger for it whatever the sign of the fitness."""
    if first == second:
        return 0.5
    if first <= 0 and second <= 0:
        return second / (first + second)
    if first >= 0 and second >= 0:
        return first / (first + second)
    return 1.0 if first > second else 0.0  # a gain beside a cost: no ratio compares them


def _cross(ind1: Any, ind2: Any, share: float, complement: bool) -> tuple[Any, Any]:
    for i, (gene1, gene2) in enumerate(zip(ind1, ind2, strict=True)):
        first = random.random() < share
        second = first if complement else random.random() >= share
        ind1[i] = gene1 if first else gene2
        ind2[i] = gene2 if second else gene1
    return ind1, ind2
