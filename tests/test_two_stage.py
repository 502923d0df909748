"""2SSP, the knapsack and SLEB by hand and by brute force."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from deap import base, tools

from sos_deap import InputError, evolve
from sos_deap.search.context import SearchContext
from sos_deap.search.limits import Limits
from sos_deap.search.space import Part, Space
from sos_deap.search.strategies.knapsack import least_loss
from sos_deap.search.strategies.two_stage import TwoStage
from tests.spaces import mixed


def lost(losses: Any, genes: Any) -> float:
    return float(sum(loss for loss, gene in zip(losses, genes, strict=True) if not gene))


def searched(space: Space, search: str, losses: list[float], **limits: Any) -> tuple[Any, Any]:
    """Run a search where losses add up; return its winner and what it evaluated."""
    asked: list[Any] = []

    def evaluate(individual: Any) -> tuple[float]:
        asked.append(individual)
        return (-lost(losses, individual),)

    toolbox = base.Toolbox()
    toolbox.register("individual", space.random)
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("evaluate", evaluate)
    toolbox.search = SearchContext(space=space, sparsity=space.sparsity)
    return evolve(toolbox, search, limits=Limits(**limits)).halloffame[0], asked


def space_of(costs: dict[str, tuple[int, int]], layers: int, share: float, **more: Any) -> Space:
    """Return a space in which each kind has a number of genes per layer and an integer cost."""
    parts = [Part(i, kind, size) for i in range(layers) for kind, (size, _) in costs.items()]
    each = [costs[part.kind][1] for part in parts for _ in range(part.size)]
    shares = tuple(cost / sum(each) for cost in each)
    return Space(tuple(parts), share, lambda genes: lost(shares, genes), shares, **more)


def test_two_stages_by_hand() -> None:
    """Four layers of 2 heads of cost 3 and 4 channel blocks of cost 3: 6 and 12 a layer, 72 in all.

    At S = 0.5, 36 are to be removed. Equation 5: round(4 * 0.5 ** (12 / 6 / 1.5)) = round(1.59) = 2
    sub-layers, 12. The rest, 24, is 6 a layer: 2 blocks.
    """
    importance = [9, 9, 4, 1, 3, 2, 9, 9, 1, 2, 3, 4, 9, 9, 4, 3, 2, 1, 9, 9, 5, 7, 6, 8]
    losses = [0.0] * 24
    for layer, loss in enumerate((3.0, 1.0, 2.0, 4.0)):
        losses[6 * layer] = loss
    space = space_of(
        {"heads": (2, 3), "channels": (4, 3)},
        4,
        0.5,
        priors={"activation": lambda: importance},
    )
    best, asked = searched(space, "two-stage", losses, evaluations=100)
    stage = [1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1]

    def without(*layers: int) -> list[int]:
        return [0 if i // 6 in layers and i % 6 < 2 else gene for i, gene in enumerate(stage)]

    assert [list(one) for one in asked] == [
        *(without(layer) for layer in range(4)),
        *(without(1, layer) for layer in (0, 2, 3)),
        without(1, 2),
    ]
    assert best == without(1, 2) and space.sparsity(best) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("share", "alpha", "removed"),
    [
        (0.5, 1.5, 2),
        (0.25, 1.5, 1),  # round(4 * 0.25 ** (4 / 3)) = round(0.63)
        (0.25, 0.5, 0),  # round(4 * 0.25 ** 4)
        (0.25, 100, 3),  # round(3.89) = 4 would cost 24 of the 18 to remove
        (0.8, 0.1, 2),  # round(4 * 0.8 ** 20) = 0, but all channels are 48 of 57.6 to remove
        (0.05, 9, 0),
    ],
)
def test_the_split_between_the_stages(share: float, alpha: float, removed: int) -> None:
    priors = {"activation": lambda: [1.0] * 20}
    space = space_of({"attention": (1, 6), "channels": (4, 3)}, 4, share, priors=priors)
    best, asked = searched(space, f"two-stage,alpha={alpha}", [0.1] * 20, evaluations=50)
    spans = zip(space.parts, space.spans, strict=True)
    attention = [best[span[0]] for part, span in spans if part.kind == "attention"]
    assert attention.count(0) == removed
    assert len(asked) == sum(4 - step for step in range(removed)) + 1


def test_two_stage_scores_its_second_stage_on_what_the_budget_allows() -> None:
    priors = {"activation": lambda: [1.0] * 24}
    space = space_of({"heads": (2, 3), "channels": (4, 3)}, 4, 0.5, priors=priors, examples=16)
    *stage, last = searched(space, "two-stage", [0.1] * 24, evaluations=5.5)[1]
    assert len({one.examples for one in stage}) == 1 and space.share(stage[0]) == 0.5
    assert space.share(last) == 1


def test_two_stage_needs_channels_attention_and_its_prior() -> None:
    for kinds in ("heads", "attention+ffn", "channels"):
        with pytest.raises(InputError, match="removes channels and attention sub-layers, and the"):
            TwoStage(mixed(kinds, 0.3), [], 10)
    with pytest.raises(InputError, match="the prior activation is unknown"):
        TwoStage(mixed("heads+channels", 0.3), [], 10)
    with pytest.raises(InputError, match="alpha is 0: give a number above 0"):
        TwoStage(mixed("heads+channels", 0.3), [], 10, alpha=0)


def test_the_knapsack_against_all_subsets_of_12_genes() -> None:
    for seed in range(15):
        draw = random.Random(seed)
        losses = [draw.uniform(-0.2, 1) for _ in range(12)]
        costs = [draw.randint(2, 9) for _ in range(12)]
        bound = draw.randint(10, 40)
        found = least_loss(losses, costs, bound)
        assert bound - min(costs) < sum(costs[i] for i in found) <= bound
        best = min(
            lost(losses, genes)
            for genes in product((0, 1), repeat=12)
            if bound - min(costs) < lost(costs, genes) <= bound
        )
        assert sum(losses[i] for i in found) == pytest.approx(best)


def test_the_knapsack_at_its_limits() -> None:
    assert least_loss([], [], 1) == [] and least_loss([1.0], [1.0], 0) == []
    assert least_loss([1.0, 2.0], [5.0, 6.0], 4.0) == []  # neither fits
    assert least_loss([9.0, 1.0], [3.0, 1.0], 3.5) == [0]  # 1 of 3.5 leaves room for another gene
    assert least_loss([5.0, -1.0, 1.0], [0.0, 0.0, 1.0], 1.0) == [1, 2]


def test_the_knapsack_search_is_the_best_additive_choice() -> None:
    space = space_of({"heads": (2, 3), "channels": (2, 4)}, 3, 0.4)  # 16.8 of 42
    draw = random.Random(3)
    losses = [draw.random() for _ in range(12)]
    best, asked = searched(space, "knapsack", losses, evaluations=50)
    costs = [3, 3, 4, 4] * 3
    least = min(
        lost(losses, genes)
        for genes in product((0, 1), repeat=12)
        if 16.8 - 3 < lost(costs, genes) <= 16.8
    )
    assert lost(losses, best) == pytest.approx(least)
    assert [sorted(i for i in range(12) if not one[i]) for one in asked[:-1]] == [
        [],
        *([gene] for gene in range(12)),
    ]
    ranked, _ = searched(space, "one-shot", losses, evaluations=50)
    assert lost(losses, ranked) >= least


def test_at_equal_costs_the_knapsack_is_one_shot() -> None:
    losses = [random.random() for _ in range(16)]
    space = Space((Part(0, "heads", 8), Part(1, "heads", 8)), 0.31)
    assert searched(space, "knapsack", losses)[0] == searched(space, "one-shot", losses)[0]


def test_sleb_removes_all_genes_of_a_layer() -> None:
    """Layers of cost 18, of which one and a part fit into 0.4 of 72."""
    space = space_of({"heads": (2, 3), "channels": (4, 3)}, 4, 0.4)
    losses = [0.5] * 24
    losses[12:18] = [0.1] * 6
    best, asked = searched(space, "sleb", losses)
    assert [one.count(0) for one in asked[:4]] == [6] * 4
    assert best[12:18] == [0] * 6 and best.count(0) == 9  # 28.8 / 3
    others = {i // 6 for i, gene in enumerate(best) if not gene} - {2}
    assert len(others) == 1


def test_greedy_compares_losses_per_cost() -> None:
    """A gene of twice the cost and 1.5 times the loss is removed first."""
    space = space_of({"heads": (2, 1), "ffn": (1, 2)}, 2, 0.5)
    best, asked = searched(space, "greedy", [1, 1, 1.5, 1, 1, 9], evaluations=50)
    assert [one.count(0) for one in asked[:7]] == [0] + [1] * 6
    assert best[2] == 0 and space.sparsity(best) == pytest.approx(0.5)
