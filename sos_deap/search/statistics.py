"""Statistics of a population for DEAP's logbook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deap import tools

from sos_deap.search.chromosome import diversity, sparsity


def statistics(measure: Callable[[Sequence[int]], float] = sparsity) -> Any:
    """Return DEAP's ``MultiStatistics`` of a population, for :func:`sos_deap.evolve`.

    Mean, minimum and maximum of fitness and sparsity, and the diversity: the mean Hamming distance
    between two chromosomes as a share of the genes.

    :param measure: function from genes to the share that they remove, such as
        ``evaluator.sparsity``; default: the share of genes that are 0.
    """
    each = tools.MultiStatistics(
        fitness=tools.Statistics(lambda individual: individual.fitness.values[0]),
        sparsity=tools.Statistics(measure),
    )
    each.register("avg", lambda values: sum(values) / len(values))
    each.register("min", min)
    each.register("max", max)
    population = each["diversity"] = tools.Statistics()  # of the population, not of individuals
    population.register("hamming", diversity)
    return each


def flat_row(logbook: Any, number: int) -> dict[str, Any]:
    """Return a row of DEAP's logbook with those of its chapters.

    :param logbook: DEAP's logbook; a value ``max`` of its chapter ``fitness`` becomes
        ``fitness_max``.
    :param number: number of the row.
    """
    chapters = {
        f"{name}_{key}": value
        for name, chapter in logbook.chapters.items()
        for key, value in chapter[number].items()
        if key not in ("gen", "nevals")
    }
    return {**logbook[number], **chapters}
