"""The surrogate that screens children, compared with SciPy and by the search results it gives."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from deap import base, tools
from scipy import optimize, stats

from sos_deap import Chromosome, InputError, evolve
from sos_deap.search.context import SearchContext
from sos_deap.search.limits import Limits
from sos_deap.search.operators import cxBalanced
from sos_deap.search.strategies.surrogate import Surrogate, kendall_tau, ridge_regression
from tests.spaces import heads

SPACE = heads((4, 4, 4, 4), 5 / 16, priors={"weights": lambda: WEIGHTS})
DRAW = np.random.default_rng(3)
WEIGHTS: list[float] = DRAW.uniform(0, 2, len(SPACE)).tolist()
TOGETHER = np.triu(DRAW.normal(0, 0.1, (len(SPACE), len(SPACE))), 1)


def cost(individual: Any) -> tuple[float]:
    removed = 1 - np.array(individual)
    return (-float(removed @ WEIGHTS + removed @ TOGETHER @ removed),)


def evaluated(genes: list[int], fitness: float) -> Chromosome:
    chromosome = Chromosome(genes)
    chromosome.fitness.values = (fitness,)
    return chromosome


def toolbox_for(evaluate: Any) -> Any:
    toolbox = base.Toolbox()
    toolbox.register("individual", SPACE.random)
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("evaluate", evaluate)
    toolbox.search = SearchContext(space=SPACE)
    return toolbox


def found(search: str, seed: int, evaluations: int, evaluate: Any = cost) -> list[int]:
    random.seed(seed)
    limits = Limits(evaluations=evaluations)
    return list(evolve(toolbox_for(evaluate), search, limits=limits).halloffame[0])


def test_ridge_regression_is_the_minimum_of_its_loss() -> None:
    masks = DRAW.integers(0, 2, (12, 5)).astype(float)
    fitness = DRAW.normal(size=12)
    penalty = 0.3 * masks.var(axis=0).sum() * 12 / 5

    def loss(at: Any) -> float:
        return float(
            ((masks @ at[:5] + at[5] - fitness) ** 2).sum() + penalty * (at[:5] ** 2).sum()
        )

    worth, intercept = ridge_regression(masks, fitness, 0.3)
    least = optimize.minimize(loss, np.zeros(6), tol=1e-12).x
    assert [*worth, intercept] == pytest.approx(least, abs=1e-5)


def test_kendall_s_tau() -> None:
    first, second = DRAW.normal(size=(2, 30))
    assert kendall_tau(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)
    assert kendall_tau([1, 2, 3], [5, 6, 7]) == 1
    assert kendall_tau([1, 2, 3], [7, 6, 5]) == -1
    assert kendall_tau([1], [2]) == 0


def test_it_predicts_where_genes_do_not_depend_on_each_other() -> None:
    def fitness(genes: list[int]) -> float:
        return sum(w for w, gene in zip(WEIGHTS, genes, strict=True) if gene)

    surrogate = Surrogate(ridge=1e-6)
    chromosomes = [list(SPACE.random()) for _ in range(100)]
    for start in range(0, 60, 10):
        surrogate.learn(
            [evaluated(genes, fitness(genes)) for genes in chromosomes[start : start + 10]]
        )
    assert surrogate.predict(chromosomes) == pytest.approx(
        list(map(fitness, chromosomes)), abs=1e-3
    )
    assert surrogate.trusted


def test_a_prior_improves_predictions_from_few_evaluations() -> None:
    def fitness(genes: list[int]) -> float:
        return 0.01 * sum(w for w, gene in zip(WEIGHTS, genes, strict=True) if gene)

    chromosomes = [list(SPACE.random()) for _ in range(60)]
    taus = []
    for prior in (None, WEIGHTS):
        surrogate = Surrogate(prior)
        surrogate.learn([evaluated(genes, fitness(genes)) for genes in chromosomes[:6]])
        rest = chromosomes[6:]
        taus.append(kendall_tau(surrogate.predict(rest), list(map(fitness, rest))))
    assert taus[0] < 0.6
    assert taus[1] > 0.95


def test_noise_is_not_trusted_and_changes_nothing() -> None:
    def noise(individual: Any) -> tuple[float]:
        return (random.Random(str(list(individual))).random(),)

    for seed in range(3):
        assert found("swap", seed, 200, noise) == found("swap,screen=4", seed, 200, noise)


def test_screening_finds_more_with_as_many_evaluations() -> None:
    def mean(search: str) -> float:
        return float(np.mean([cost(found(search, seed, 120))[0] for seed in range(12)]))

    plain, screened = mean("swap"), mean("swap,screen=6")
    assert screened > plain
    assert mean("swap,prior=weights") > plain  # which starts from the weights


def test_a_user_s_mistakes() -> None:
    for search, message in (
        ("swap,screen=0", "screen is 0: give at least 1"),
        ("swap,unscreened=2", "unscreened is 2: give a share from 0 to 1"),
        ("swap,prior=weigths", "unknown prior 'weigths': did you mean 'weights'"),
    ):
        with pytest.raises(InputError, match=message):
            found(search, 0, 50)


def test_balanced_crossover_keeps_both_sparsities_and_what_the_parents_agree_on() -> None:
    random.seed(1)
    changed = 0
    for _ in range(200):
        parents = [[random.randint(0, 1) for _ in range(12)] for _ in range(2)]
        children = cxBalanced(list(parents[0]), list(parents[1]), indpb=0.5)
        for parent, child in zip(parents, children, strict=True):
            assert sum(parent) == sum(child)
            changed += parent != child
        for genes in zip(*parents, *children, strict=True):
            assert sorted(genes[:2]) == sorted(genes[2:])
    assert changed > 200
    one, other = [0, 1, 1, 0], [1, 0, 0, 1]
    assert cxBalanced(list(one), list(other), indpb=1.0) == (other, one)
    assert cxBalanced(list(one), list(other), indpb=0.0) == (one, other)
