"""Fill a DEAP toolbox with everything its algorithms need to prune a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from deap import base

from sos_deap.errors import InputError
from sos_deap.evaluation.batched_map import batched_map
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.evaluation.priors import PRIORS
from sos_deap.models.importance import IMPORTANCES
from sos_deap.search.choice import Choice, Operator, choose, try_out
from sos_deap.search.chromosome import (
    Chromosome,
    Fitness,
    ParetoFitness,
    random_genes,
)
from sos_deap.search.context import SearchContext
from sos_deap.search.initial import Initializer
from sos_deap.search.operators import cxBalanced, mutSparsityFlipBit, mutSwap
from sos_deap.search.prior import RemovalWeights
from sos_deap.search.repairs import limit_sparsity, uniform_within
from sos_deap.search.space import Part, Space
from sos_deap.search.validation import Validation

#: The share of a prior's weights that is equal for all genes.
EXPLORATION = 0.15

#: Fitness classes by the number of values an objective gives.
FITNESS: dict[int, type[base.Fitness]] = {1: Fitness, 2: ParetoFitness}


def register(
    toolbox: Any,
    evaluator: Evaluator,
    *,
    initial_sparsity: float = 0.05,
    max_sparsity: float | None = None,
    mutation_rate: float = 0.01,
    mutation_bias: float = 1.0,
    tournament_size: int = 3,
    crossover: str | Operator = "sign-aware",
    mutation: str | Operator = "flip",
    selection: str | Operator | None = None,
    prior: str | None = None,
    repair: bool = True,
    uniform: Mapping[str, Sequence[int]] | None = None,
    finalists: int | None = 10,
) -> None:
    """Register ``individual, population, evaluate, map, mate, mutate, select`` in a toolbox.

    The defaults are the paper's. Any alias can be registered again afterwards to replace it.

    What :func:`sos_deap.evolve` needs beyond these aliases is one frozen object,
    ``toolbox.search`` (:class:`sos_deap.search.context.SearchContext`). To replace one of its
    fields: ``toolbox.search = dataclasses.replace(toolbox.search, validation=None)``.

    With an objective of two values ``select`` defaults to NSGA-II's, which selects survivors: use
    it with DEAP's (mu, lambda) algorithms.

    An operator is a name of DEAP's or of this package, optionally with parameters after commas
    (``"cxUniform,indpb=0.3"``), ``"module:function"``, or the function itself; see
    :func:`sos_deap.search.choice.choose`. It is tried on a few individuals first.

    :param toolbox: a DEAP ``base.Toolbox``.
    :param evaluator: evaluates the individuals, a whole generation at a time.
    :param initial_sparsity: share of genes removed in a new individual, in [0, 1).
    :param max_sparsity: S, the largest share removed, in [0, 1), of what the evaluator's
        ``sparsity_of`` names; above it the fitness is the worst. Default: the evaluator's.
    :param mutation_rate: mean probability of a flip per gene: the default of the mutation's
        ``indpb``.
    :param mutation_bias: ratio of prune flips to restore flips, 1 in the paper: the default of the
        mutation's ``bias``.
    :param tournament_size: individuals in a tournament, at least 1: the default of the selection's
        ``tournsize``.
    :param crossover: an operator, such as a key of :data:`sos_deap.search.choice.CROSSOVERS`.
    :param mutation: an operator, such as a key of :data:`sos_deap.search.choice.MUTATIONS`.
    :param selection: an operator, such as a key of :data:`sos_deap.search.choice.SELECTIONS`.
        Default: ``"tournament"``, or ``"nsga2"`` with an objective of two values.
    :param prior: name of an importance, one of :data:`sos_deap.evaluation.priors.PRIORS`, which
        biases removal towards the least important genes: in new individuals (the first one of a
        population removes exactly the least important), in the mutation ``flip``, and in the
        repair. A share :data:`EXPLORATION` of the weights is equal for all genes. Default: no bias.
    :param repair: whether ``mate`` and ``mutate`` restore genes of children above ``max_sparsity``.
    :param uniform: for each kind the numbers of genes that a layer may keep, for the layout
        ``"uniform"``, as :func:`sos_deap.models.uniform.uniform_counts` returns them; all layers of
        an individual keep the same number. Default: layers may differ.
    :param finalists: number of best individuals among which the validation examples choose the
        winner, at least 1; ``None`` for no choice.
    :raises InputError: if a value is out of range; if an operator is unknown or does not fit; if
        the objective has three or more values, or two and there are validation examples; and if
        ``max_sparsity`` permits none of the ``uniform`` numbers.
    """
    max_sparsity = evaluator.max_sparsity if max_sparsity is None else max_sparsity
    check_operators(
        initial_sparsity, max_sparsity, mutation_rate, tournament_size, evaluator.sparsity_of
    )
    fitness = _fitness(evaluator)
    space = _space(evaluator, max_sparsity, fitness)
    search = _search_context(evaluator, space, finalists)
    operators = chosen_operators(
        crossover,
        mutation,
        selection or ("tournament" if evaluator.objectives == 1 else "nsga2"),
        mutation_rate=mutation_rate,
        mutation_bias=mutation_bias,
        tournament_size=tournament_size,
    )
    for choice in operators.values():
        try_out(choice, lambda: Chromosome(random_genes(len(space), initial_sparsity), fitness))
    weights = None if prior is None else _weights(evaluator, space, prior)
    _fit_to_space(operators, space, weights)
    feasible = _feasible(space, uniform, weights)
    initial = Initializer(len(space), initial_sparsity, fitness, weights, feasible)

    toolbox.register("individual", initial.individual)
    toolbox.register("population", initial.population, toolbox)
    toolbox.register("evaluate", evaluator, max_sparsity=max_sparsity)
    toolbox.register("map", batched_map)
    for role, choice in operators.items():
        toolbox.register(role, choice.function, **choice.parameters)
    if repair or uniform:
        toolbox.decorate("mate", feasible)
        toolbox.decorate("mutate", feasible)
    toolbox.search = search


def _fitness(evaluator: Evaluator) -> type[base.Fitness]:
    """Return the fitness class for an evaluator's objective."""
    if evaluator.objectives not in FITNESS:
        raise InputError(
            f"the objective gives {evaluator.objectives} values: register makes individuals of one "
            "or two values; register `individual` with a fitness of your own for more"
        )
    return FITNESS[evaluator.objectives]


def _space(evaluator: Evaluator, max_sparsity: float, fitness: type[base.Fitness]) -> Space:
    """Return the space of the evaluator's chromosomes."""
    return Space(
        tuple(
            Part(part.layer, part.kind, part.size, ordered=part.kind == "channels")
            for part in evaluator.gene_map.parts
        ),
        max_sparsity=max_sparsity,
        sparsity=evaluator.sparsity,
        costs=evaluator.sparsity.costs,
        individual=partial(Chromosome, fitness=fitness),
        examples=len(evaluator.task),
        tokens=evaluator.task.tokens,
        priors={name: partial(_importance, evaluator, name) for name in PRIORS},
        prior_cost=evaluator.importance_cost,
    )


def _importance(evaluator: Evaluator, name: str) -> list[float]:
    """Return the importance of each gene, in proportion to its cost if it is standardised.

    A standardised importance ranks genes as it is (FLAP, An et al., 2024), and not per cost as a
    loss does, by which the space ranks.
    """
    found, costs = evaluator.importance(name), evaluator.sparsity.costs
    if name not in IMPORTANCES or not IMPORTANCES[name].standardised:
        return found
    most = max(costs)
    return [value * (cost / most) for value, cost in zip(found, costs, strict=True)]


def _search_context(evaluator: Evaluator, space: Space, finalists: int | None) -> SearchContext:
    """Return what searches need beyond DEAP's aliases."""
    return SearchContext(
        space=space,
        sparsity=evaluator.sparsity,
        validation=_validation(evaluator, finalists),
        spent=evaluator.spent,
        interruptible=evaluator.interruptible,
    )


def _fit_to_space(
    operators: Mapping[str, Choice], space: Space, weights: RemovalWeights | None
) -> None:
    """Add the weights, and what operators need for genes of unequal costs or kinds."""
    for choice in operators.values():
        if choice.function in (cxBalanced, mutSwap) and not space.equal:
            choice.parameters["space"] = space
        if choice.function is mutSparsityFlipBit:
            rates = space.rates(choice.parameters["indpb"])
            added = {"weights": weights, "rates": rates}
            choice.parameters.update({k: v for k, v in added.items() if v is not None})


def _weights(evaluator: Evaluator, space: Space, prior: str) -> RemovalWeights:
    """Return removal weights by a prior per cost; cheap ones are computed, so checked, at once."""
    weights = RemovalWeights(lambda: space.per_cost(_importance(evaluator, prior)), EXPLORATION)
    if evaluator.importance_cost(prior) < len(evaluator.gene_map):
        assert weights.made  # the evaluations of an ablation count as the search's, so they wait
    return weights


def _validation(evaluator: Evaluator, finalists: int | None) -> Validation | None:
    """Return the choice of the winner by the validation examples; ``None`` if there are none."""
    if evaluator.validation is None or finalists is None:
        return None
    if evaluator.objectives > 1:
        raise InputError(
            "validation_samples choose one winner by one fitness value, and the objective gives "
            f"{evaluator.objectives}: leave validation_samples out, or use another objective"
        )
    if finalists < 1:
        raise InputError(f"finalists is {finalists}: give at least 1")
    task, calibration = evaluator.validation.task, evaluator.task
    tokens = task.reference_tokens + finalists * task.tokens
    evaluations = tokens / calibration.tokens if calibration.tokens else finalists

    def score(evaluate: Callable[..., Any], individuals: Sequence[Any]) -> list[Any]:
        with evaluator.validating():  # not by toolbox.map, whose workers lack the examples
            return batched_map(evaluate, individuals)

    return Validation(score, finalists, evaluations, tokens)


def chosen_operators(
    crossover: str | Operator,
    mutation: str | Operator,
    selection: str | Operator,
    *,
    mutation_rate: float,
    mutation_bias: float = 1.0,
    tournament_size: int,
) -> dict[str, Choice]:
    """Return the operators to register as ``mate``, ``mutate`` and ``select``.

    :param crossover: a name, optionally with parameters, or the function.
    :param mutation: likewise a name or a function.
    :param selection: likewise a name or a function.
    :param mutation_rate: ``indpb`` of the mutation, a probability, if the name sets none.
    :param mutation_bias: ``bias`` of the mutation, if the name sets none.
    :param tournament_size: ``tournsize`` of the selection, if the name sets none.
    :raises InputError: for an operator that is unknown, is for other genes, or does not take the
        parameters given.
    """
    # 0.5 is the published rate of uniform crossover (Syswerda, 1989).
    flips = {"indpb": mutation_rate, "bias": mutation_bias}
    return {
        "mate": choose("crossover", crossover, {"indpb": 0.5}),
        "mutate": choose("mutation", mutation, flips),
        "select": choose("selection", selection, {"tournsize": tournament_size}),
    }


def _feasible(
    space: Space, uniform: Mapping[str, Sequence[int]] | None, weights: RemovalWeights | None
) -> Any:
    """Return the decorator that makes the individuals feasible that an operator returns."""
    if uniform:
        return uniform_within(space, uniform)
    costs = None if space.equal else space.costs
    return limit_sparsity(space.max_sparsity, space.sparsity, weights, costs)


def check_operators(
    initial_sparsity: float,
    max_sparsity: float,
    mutation_rate: float,
    tournament_size: int,
    sparsity_of: str = "genes",
) -> None:
    """Check the settings of the operators.

    :param initial_sparsity: share of genes removed in a new individual, in [0, 1).
    :param max_sparsity: largest share removed, in [0, 1), of what ``sparsity_of`` names.
    :param mutation_rate: a probability.
    :param tournament_size: at least 1.
    :param sparsity_of: what ``max_sparsity`` is a share of.
    :raises InputError: for a value out of range.
    """
    for name, share in (("initial_sparsity", initial_sparsity), ("max_sparsity", max_sparsity)):
        if not 0 <= share < 1:
            raise InputError(f"{name} is {share}: a sparsity lies in [0, 1)")
    # The initial sparsity is a share of genes, which compares with a share of genes only.
    if sparsity_of == "genes" and initial_sparsity >= max_sparsity:
        raise InputError(
            f"initial_sparsity {initial_sparsity} is not below max_sparsity {max_sparsity}: "
            "give a smaller initial or a larger maximum sparsity"
        )
    if not 0 <= mutation_rate <= 1:
        raise InputError(f"mutation_rate is {mutation_rate}: a probability lies in [0, 1]")
    if tournament_size < 1:
        raise InputError(f"tournament_size is {tournament_size}: give at least 1")
