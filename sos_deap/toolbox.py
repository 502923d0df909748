"""Fill a DEAP toolbox with everything its algorithms need to prune a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from deap import tools

from sos_deap.errors import InputError
from sos_deap.evaluation.batched_map import batched_map
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.evaluation.priors import PRIORS
from sos_deap.search.choice import Choice, Operator, choose, try_out
from sos_deap.search.chromosome import (
    Chromosome,
    Fitness,
    ParetoFitness,
    diversity,
    random_genes,
    sparsity,
    within,
)
from sos_deap.search.operators import limit_sparsity, mutSparsityFlipBit, uniform_layers
from sos_deap.search.prior import RemovalWeights
from sos_deap.search.space import Space, most_removed
from sos_deap.search.validation import Validation

#: The share of a prior's weights that is the same for all heads.
EXPLORATION = 0.15

#: Fitness classes by the number of values an objective gives.
FITNESS = {1: Fitness, 2: ParetoFitness}


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
    uniform: Sequence[int] | None = None,
    finalists: int = 10,
) -> None:
    """Register ``individual, population, evaluate, map, mate, mutate, select`` in a toolbox.

    The defaults are the paper's; register any of them anew afterwards to swap it. For
    :func:`sos_deap.evolve` there are also ``sparsity``, which measures an individual; ``spent``,
    which returns what evaluations have cost; ``space``, from which strategies choose;
    ``interruptible``, a context in which a function is called between forward passes; and
    ``validation``, which chooses the winner, or ``None`` if the evaluator has no examples for that.
    With an objective of two values the default of ``select`` is NSGA-II's, which chooses survivors:
    use it with DEAP's (mu, lambda) algorithms.

    An operator is a name of ours or of DEAP's, with parameters after commas if any
    (``"cxUniform,indpb=0.3"``), ``"module:function"``, or the function itself; see
    :func:`sos_deap.search.choice.choose`. It is tried on a few individuals first.

    :param toolbox: a DEAP ``base.Toolbox``.
    :param evaluator: evaluates the individuals, a whole generation at a time.
    :param initial_sparsity: share of heads removed in a new individual.
    :param max_sparsity: S, the largest share removed, of what the evaluator counts; above it the
        fitness is the worst. ``None`` for the evaluator's own.
    :param mutation_rate: mean probability of a flip per gene: ``indpb`` of the mutation, unless
        that is given.
    :param mutation_bias: ratio of prune flips to restore flips; 1 is the paper's. ``bias`` of the
        mutation, unless that is given.
    :param tournament_size: individuals in a tournament: ``tournsize`` of the selection, unless that
        is given.
    :param crossover: an operator; a key of :data:`sos_deap.search.choice.CROSSOVERS`, say.
    :param mutation: an operator; a key of :data:`sos_deap.search.choice.MUTATIONS`, say.
    :param selection: an operator; a key of :data:`sos_deap.search.choice.SELECTIONS`, say. ``None``
        for ``"tournament"``, or ``"nsga2"`` with an objective of two values.
    :param prior: an importance, one of :data:`sos_deap.evaluation.priors.PRIORS`, that says which
        heads rather go: in new individuals, of which the first of a population removes the least
        important, by the mutation ``flip``, and in what ``repair`` gives back. A share of
        :data:`EXPLORATION` is left to chance. ``None`` for all heads alike.
    :param repair: let ``mate`` and ``mutate`` give back heads to children above ``max_sparsity``.
    :param uniform: keep equally many heads in every layer, one of these numbers: those that
        :func:`sos_deap.models.prune.uniform_counts` finds, for the layout ``"uniform"``.
    :param finalists: how many of the best the validation examples choose the winner among.
    :raises InputError: for a value out of range, an operator that is unknown or does not fit, an
        objective of three values or more, or of two with validation examples, and if
        ``max_sparsity`` leaves none of the ``uniform`` numbers.
    """
    if max_sparsity is None:
        max_sparsity = evaluator.max_sparsity
    check_operators(
        initial_sparsity, max_sparsity, mutation_rate, tournament_size, evaluator.sparsity_of
    )
    if evaluator.objectives not in FITNESS:
        raise InputError(
            f"the objective gives {evaluator.objectives} values: individuals of one or two are "
            "registered here; register `individual` with a fitness of your own for more"
        )
    toolbox.validation = _validation(evaluator, finalists) if evaluator.validation else None
    operators = chosen_operators(
        crossover,
        mutation,
        selection or ("tournament" if evaluator.objectives == 1 else "nsga2"),
        mutation_rate=mutation_rate,
        mutation_bias=mutation_bias,
        tournament_size=tournament_size,
    )
    length = len(evaluator.head_map)
    fitness = FITNESS[evaluator.objectives]
    for choice in operators.values():
        try_out(choice, lambda: Chromosome(random_genes(length, initial_sparsity), fitness))
    weights = None
    if prior is not None:
        weights = _weights(evaluator, prior)
        if operators["mutate"].function is mutSparsityFlipBit:
            operators["mutate"].parameters["weights"] = weights
    bound = limit_sparsity(max_sparsity, evaluator.sparsity, weights)
    mend = _even_out(evaluator, max_sparsity, uniform) if uniform else bound

    def one() -> tuple[Chromosome]:
        return (Chromosome(random_genes(length, initial_sparsity, weights), fitness),)

    fresh = mend(one)

    def individual() -> Chromosome:
        chromosome: Chromosome = fresh()[0]
        return chromosome

    def population(n: int) -> list[Chromosome]:
        people = [toolbox.individual() for _ in range(n)]
        if weights is not None and people:
            order = sorted(range(length), key=lambda gene: -weights[gene])
            gone = set(order[: round(length * initial_sparsity)])
            people[0][:] = [int(gene not in gone) for gene in range(length)]
            mend(lambda: (people[0],))()
        return people

    toolbox.register("individual", individual)
    toolbox.register("population", population)
    toolbox.register("evaluate", evaluator, max_sparsity=max_sparsity)
    toolbox.register("map", batched_map)
    toolbox.register("sparsity", evaluator.sparsity)
    toolbox.register("spent", evaluator.spent)
    toolbox.register("interruptible", evaluator.interruptible)
    toolbox.space = Space(
        evaluator.head_map.genes_per_layer,
        removed=most_removed(length, max_sparsity, evaluator.sparsity),
        individual=partial(Chromosome, fitness=fitness),
        examples=len(evaluator.task),
        tokens=evaluator.task.tokens,
        priors={name: partial(evaluator.importance, name) for name in PRIORS},
        prior_cost=evaluator.importance_cost,
    )
    for role, choice in operators.items():
        toolbox.register(role, choice.function, **choice.parameters)
    if repair or uniform:
        toolbox.decorate("mate", mend)
        toolbox.decorate("mutate", mend)


def _weights(evaluator: Evaluator, prior: str) -> RemovalWeights:
    """How much sooner than the average each gene is to go, by a prior."""
    weights = RemovalWeights(partial(evaluator.importance, prior), EXPLORATION)
    if evaluator.importance_cost(prior) < len(evaluator.head_map):
        assert weights.made  # what fails does so now; the evaluations of an ablation are a search's
    return weights


def _validation(evaluator: Evaluator, finalists: int) -> Validation:
    """The choice of the winner by an evaluator's validation examples."""
    assert evaluator.validation is not None
    if evaluator.objectives > 1:
        raise InputError(
            "validation_samples choose one winner by one fitness value, and the objective gives "
            f"{evaluator.objectives}: leave them out, or use another objective"
        )
    if finalists < 1:
        raise InputError(f"finalists is {finalists}: give at least 1")
    task, each = evaluator.validation.task, evaluator.task
    tokens = task.reference_tokens + finalists * task.tokens
    evaluations = tokens / each.tokens if each.tokens else finalists

    def score(evaluate: Callable[..., Any], individuals: Sequence[Any]) -> list[Any]:
        with evaluator.validating():  # here, whatever the toolbox's map: other processes have none
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
    """The operators to register as ``mate``, ``mutate`` and ``select``; see :func:`register`.

    :raises InputError: for an operator that is unknown, is for other genes, or does not take the
        parameters given.
    """
    # Of uniform crossover, swapping every other gene is the published rate (Syswerda, 1989).
    flips = {"indpb": mutation_rate, "bias": mutation_bias}
    return {
        "mate": choose("crossover", crossover, {"indpb": 0.5}),
        "mutate": choose("mutation", mutation, flips),
        "select": choose("selection", selection, {"tournsize": tournament_size}),
    }


def _even_out(evaluator: Evaluator, max_sparsity: float, counts: Sequence[int]) -> Any:
    """The decorator that keeps the layers of an evaluator's chromosomes equally large."""
    size, unit = max(evaluator.head_map.genes_per_layer), evaluator.head_map.unit
    layers = len(evaluator.head_map.layers)

    def fits(count: int) -> bool:
        genes = ([1] * count + [0] * (size - count)) * layers
        return within(evaluator.sparsity(genes), max_sparsity)

    feasible = list(filter(fits, counts))
    if feasible in ([], [size]):
        raise InputError(
            f"with max_sparsity {max_sparsity} a uniform layer keeps all its {size} {unit}s: "
            f"fewer can be {', '.join(str(count) for count in counts if count < size)}; give a "
            "larger max_sparsity, or another layout"
        )
    return uniform_layers(size, feasible)


def statistics(measure: Callable[[Sequence[int]], float] = sparsity) -> Any:
    """DEAP's statistics of a population: mean, minimum and maximum of fitness and sparsity.

    And its diversity, the mean Hamming distance of two chromosomes as a share of the genes.

    :param measure: from genes to the share that they remove, such as an evaluator's ``sparsity``.
    """
    each = tools.MultiStatistics(
        fitness=tools.Statistics(lambda individual: individual.fitness.values[0]),
        sparsity=tools.Statistics(measure),
    )
    each.register("avg", lambda values: sum(values) / len(values))
    each.register("min", min)
    each.register("max", max)
    whole = each["diversity"] = tools.Statistics()  # of all chromosomes together
    whole.register("hamming", diversity)
    return each


def check_operators(
    initial_sparsity: float,
    max_sparsity: float,
    mutation_rate: float,
    tournament_size: int,
    sparsity_of: str = "heads",
) -> None:
    """Raise :class:`InputError` for settings of the operators that are out of range."""
    for name, share in (("initial_sparsity", initial_sparsity), ("max_sparsity", max_sparsity)):
        if not 0 <= share < 1:
            raise InputError(f"{name} is {share}: a sparsity lies in [0, 1)")
    # The initial one is a share of heads: with another measure the two cannot be compared.
    if sparsity_of == "heads" and initial_sparsity >= max_sparsity:
        raise InputError(
            f"initial_sparsity {initial_sparsity} is not below max_sparsity {max_sparsity}: "
            "give a smaller initial or a larger maximum sparsity"
        )
    if not 0 <= mutation_rate <= 1:
        raise InputError(f"mutation_rate is {mutation_rate}: a probability lies in [0, 1]")
    if tournament_size < 1:
        raise InputError(f"tournament_size is {tournament_size}: give at least 1")
