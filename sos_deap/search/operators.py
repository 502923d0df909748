"""The paper's crossover and mutation as DEAP operators, and exchange operators.

Like DEAP's operators, they edit individuals in place, return them in a tuple, and draw from
Python's global generator.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from sos_deap.search.budget import exchanged
from sos_deap.search.space import Space
from sos_deap.search.strategies.exchange import few_moves

Crossover = Callable[[Any, Any], tuple[Any, Any]]


def cxFitnessWeighted(ind1: Any, ind2: Any) -> tuple[Any, Any]:
    """Fitness-weighted crossover (Algorithm 2), corrected: sign-aware, with two full children.

    Each gene of each child is drawn independently, from parent 1 with probability
    ``f1 / (f1 + f2)``. For costs (negative fitness, as in Equation 1) that ratio would favour the
    worse parent, so the probability is ``f2 / (f1 + f2)``.

    :param ind1: first parent, evaluated; becomes the first child.
    :param ind2: second parent, evaluated; becomes the second child.
    :returns: the two children.
    :raises ValueError: if a parent has not been evaluated.
    """
    return _cross(ind1, ind2, _share_of_first(*_fitnesses(ind1, ind2)), complement=False)


def cxFitnessWeightedPaper(ind1: Any, ind2: Any) -> tuple[Any, Any]:
    """Fitness-weighted crossover as printed in Algorithm 2, for either sign of the fitness.

    ``prob = f1 / (f1 + f2)`` (line 2), with one draw per gene (line 6). Lines 7 and 9 give the gene
    to one child only, so that the children's lengths add up to one chromosome; here the other child
    gets the other parent's gene, which completes both.

    :param ind1: first parent, evaluated; becomes the first child.
    :param ind2: second parent, evaluated; becomes the second child.
    :returns: the two children.
    :raises ValueError: if a parent has not been evaluated.
    """
    first, second = _fitnesses(ind1, ind2)
    total = first + second
    return _cross(ind1, ind2, first / total if total else 0.5, complement=True)


def mutSparsityFlipBit(
    individual: Any,
    indpb: float,
    bias: float = 1.0,
    weights: Sequence[float] | None = None,
    rates: Sequence[float] | None = None,
) -> tuple[Any]:
    """Flip-bit mutation with an optional bias towards pruning.

    A kept gene is removed with probability ``2 * indpb * bias / (1 + bias)``, a removed gene is
    restored with probability ``2 * indpb / (1 + bias)``: their mean is ``indpb``, their ratio
    ``bias``. With a bias of 1 this is the paper's flip-bit mutation, with the same random draws as
    DEAP's ``mutFlipBit``.

    :param individual: the individual to mutate.
    :param indpb: mean probability of a flip per gene.
    :param bias: ratio of prune flips to restore flips for equally many kept and removed genes, at
        least 0.
    :param weights: for each gene, a factor w from 0 to 2 (mean 1) for its probability of removal;
        the factor for its restoration is 2 - w. Default: 1 for all.
    :param rates: for each gene, a factor of at least 0 for both probabilities, which are at most 1;
        such as :meth:`sos_deap.search.space.Space.rates` returns for genes that are few. Default:
        1 for all.
    :returns: the individual.
    :raises ValueError: if a probability or the bias is out of range.
    """
    if bias < 0:
        raise ValueError(f"bias is {bias}: give 0 or more (1 is for no bias)")
    remove, restore = 2 * indpb * bias / (1 + bias), 2 * indpb / (1 + bias)
    if not (0 <= remove <= 1 and 0 <= restore <= 1):
        raise ValueError(
            f"indpb {indpb} with bias {bias} gives flip probabilities of {remove:.3g} and "
            f"{restore:.3g}, which must lie in [0, 1]: give a smaller indpb"
        )
    for i, gene in enumerate(individual):
        weight = 1.0 if weights is None else weights[i]
        chance = remove * weight if gene else restore * (2 - weight)
        if random.random() < (chance if rates is None else chance * rates[i]):
            individual[i] = type(gene)(not gene)
    return (individual,)


def mutSwap(individual: Any, moves: int = 3, space: Space | None = None) -> tuple[Any]:
    """Exchange mutation: restores as many genes as it removes, at constant sparsity.

    The number of exchanges is the minimum of two uniform draws from 1 to ``moves``, as in EvoPress
    (Sieberling et al., 2024).

    :param individual: the individual to mutate.
    :param moves: maximum number of exchanges, at least 1.
    :param space: the space, for genes of unequal costs: after the exchanges more genes are restored
        or removed at random, so that the individual fills its maximum sparsity. Default: all genes
        cost the same.
    :returns: the individual.
    :raises ValueError: if ``moves`` is below 1.
    """
    if moves < 1:
        raise ValueError(f"moves is {moves}: give at least 1")
    before = list(individual)
    individual[:] = exchanged(before, few_moves(moves))
    if space is not None:
        individual[:] = space.settled(individual, before)
    return (individual,)


def cxBalanced(
    ind1: Any, ind2: Any, indpb: float = 0.5, space: Space | None = None
) -> tuple[Any, Any]:
    """Crossover at constant sparsity: each child removes as many genes as the parent it replaces.

    Genes that only the first parent keeps are paired at random with genes that only the second
    keeps. Each pair is swapped between the children with probability ``indpb``. Genes on which the
    parents agree do not change, and no repair is needed if all genes cost the same.

    :param ind1: first parent; becomes the first child.
    :param ind2: second parent; becomes the second child.
    :param indpb: probability that a pair is swapped.
    :param space: the space, for genes of unequal costs: after the swaps more genes of each child
        are restored or removed at random, so that it fills the maximum sparsity. Default: all genes
        cost the same.
    :returns: the two children.
    """
    parents = list(ind1), list(ind2)
    first = [i for i, (a, b) in enumerate(zip(ind1, ind2, strict=True)) if a > b]
    second = [i for i, (a, b) in enumerate(zip(ind1, ind2, strict=True)) if a < b]
    pairs = min(len(first), len(second))
    for pair in zip(random.sample(first, pairs), random.sample(second, pairs), strict=True):
        if random.random() < indpb:
            for i in pair:
                ind1[i], ind2[i] = ind2[i], ind1[i]
    if space is not None:
        for child, before in zip((ind1, ind2), parents, strict=True):
            child[:] = space.settled(child, before)
    return ind1, ind2


def _fitnesses(ind1: Any, ind2: Any) -> tuple[float, float]:
    if not (ind1.fitness.valid and ind2.fitness.valid):
        raise ValueError(
            "fitness-weighted crossover got a parent without fitness: evaluate the population "
            "before mating it"
        )
    return ind1.fitness.wvalues[0], ind2.fitness.wvalues[0]


def _share_of_first(first: float, second: float) -> float:
    """Return the first parent's share: above 0.5 if it is fitter, whatever the signs."""
    if first == second:
        return 0.5
    if first <= 0 and second <= 0:
        return second / (first + second)
    if first >= 0 and second >= 0:
        return first / (first + second)
    return 1.0 if first > second else 0.0  # no ratio compares a gain and a cost


def _cross(ind1: Any, ind2: Any, share: float, complement: bool) -> tuple[Any, Any]:
    """Draw each gene of the children from a parent, in place.

    :param share: probability that a gene of the first child is the first parent's.
    :param complement: whether the second child gets the other parent's gene; else its genes are
        drawn independently.
    """
    for i, (gene1, gene2) in enumerate(zip(ind1, ind2, strict=True)):
        first = random.random() < share
        second = first if complement else random.random() >= share
        ind1[i] = gene1 if first else gene2
        ind2[i] = gene2 if second else gene1
    return ind1, ind2
