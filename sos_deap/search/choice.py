"""Crossover, mutation and selection by name: rows of our tables, DEAP's, or the user's own.

What DEAP has for other genes than 0 and 1 is refused by name, and what a user wrote is tried before
a search begins.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy
from deap import tools

from sos_deap.errors import InputError, first_line
from sos_deap.search import operators, selection
from sos_deap.search.named import check_parameters, check_sizes, look_up, name_of, split

Operator = Callable[..., Any]

#: Crossovers by the name the user gives, beside DEAP's and ours by their own.
CROSSOVERS: dict[str, Operator] = {
    "balanced": operators.cxBalanced,
    "one-point": tools.cxOnePoint,
    "paper": operators.cxFitnessWeightedPaper,
    "sign-aware": operators.cxFitnessWeighted,
    "two-point": tools.cxTwoPoint,
    "uniform": tools.cxUniform,
}

#: Mutations by the name the user gives.
MUTATIONS: dict[str, Operator] = {
    "flip": operators.mutSparsityFlipBit,
    "swap": operators.mutSwap,
}

#: Selections by the name the user gives.
SELECTIONS: dict[str, Operator] = {
    "lexicase": tools.selLexicase,
    "nsga2": tools.selNSGA2,
    "nsga3": selection.selNSGA3,
    "roulette": selection.selRoulette,
    "spea2": tools.selSPEA2,
    "tournament": tools.selTournament,
}

#: DEAP's operators that cannot work on chromosomes: what they are for instead. (On 0/1 genes those
#: for permutations do not fail, but what they do has no meaning.)
UNFIT: dict[str, str] = {
    **dict.fromkeys(("cxOrdered", "cxPartialyMatched", "cxUniformPartialyMatched"), "permutations"),
    **dict.fromkeys(
        (
            *("cxBlend", "cxSimulatedBinary", "cxSimulatedBinaryBounded"),
            *("mutGaussian", "mutPolynomialBounded"),
        ),
        "real numbers",
    ),
    **dict.fromkeys(
        ("cxESBlend", "cxESTwoPoint", "cxESTwoPoints", "mutESLogNormal"),
        "evolution strategies, whose individuals carry step sizes",
    ),
    "cxMessyOnePoint": "individuals of any length",
    "selTournamentDCD": "loops that assign crowding distances, which DEAP's own do not",
}


class Choice(NamedTuple):
    """An operator that was chosen.

    :param kind: a key of :data:`KINDS`.
    :param name: as the user gave it.
    :param function: the operator.
    :param parameters: its keyword arguments.
    """

    kind: str
    name: str
    function: Operator
    parameters: dict[str, Any]

    @property
    def what(self) -> str:
        """What it is to the user."""
        return f"the {self.kind} {self.name}"


class Kind(NamedTuple):
    """A kind of operator: its table, how DEAP begins its names, and how much its caller gives."""

    rows: Mapping[str, Operator]
    prefix: str
    places: int


#: Kinds of operators by the name of the flag.
KINDS = {
    "crossover": Kind(CROSSOVERS, "cx", 2),
    "mutation": Kind(MUTATIONS, "mut", 1),
    "selection": Kind(SELECTIONS, "sel", 2),
}


def available(kind: str) -> dict[str, Operator]:
    """All operators of a kind that work on chromosomes: DEAP's, ours of the same name, and rows."""
    rows, prefix, _ = KINDS[kind]
    found = {
        name: function
        for module in (tools, operators, selection)  # a later one's counts
        for name, function in vars(module).items()
        if name.startswith(prefix) and inspect.isfunction(function) and name not in UNFIT
    }
    return found | dict(rows)


def choose(kind: str, given: str | Operator, defaults: Mapping[str, Any]) -> Choice:
    """The operator that a user chose.

    :param kind: a key of :data:`KINDS`.
    :param given: ``NAME,key=value,...``, where NAME is a row of the kind's table, an operator of
        DEAP or of this package, or ``module:function``; or the operator itself.
    :param defaults: parameters that are given where the operator has them and the user did not.
    :returns: the operator and its parameters.
    :raises InputError: for an unknown name, an operator for other genes, and parameters that the
        operator does not take, or that it lacks.
    """
    name, parameters = (name_of(given), {}) if callable(given) else split(given)
    if name in UNFIT:
        raise InputError(
            f"the {kind} {name} is for {UNFIT[name]}, not for lists of 0 and 1: known are "
            f"{', '.join(sorted(available(kind)))}"
        )
    function = given if callable(given) else look_up(kind, name, available(kind))
    own = set(_names(function)[KINDS[kind].places :])
    parameters = {key: value for key, value in defaults.items() if key in own} | parameters
    choice = Choice(kind, name, function, parameters)
    check_parameters(choice.what, function, parameters, KINDS[kind].places)
    if function in available(kind).values():  # what a user's own may take, only the user knows
        check_sizes(choice.what, parameters)
    return choice


def try_out(choice: Choice, individual: Callable[[], Any]) -> None:
    """Use an operator on a few individuals, so that it fails now if it does at all.

    The state of the random generators is left as it was.

    :param choice: the operator.
    :param individual: makes an individual.
    :raises InputError: if the operator raises anything, or returns what DEAP has no use for.
    """
    states = random.getstate(), numpy.random.get_state()
    try:
        for _ in range(5):
            people = [_evaluated(individual(), i) for i in range(8)]
            wrong = _TRIALS[choice.kind](partial(choice.function, **choice.parameters), people)
            if wrong:
                raise InputError(f"{choice.what} does not fit: {wrong}")
    except InputError:
        raise
    except Exception as error:  # an operator may raise anything
        said = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{choice.what} fails when it is tried: {said}") from error
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def _names(function: Operator) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # check_parameters says so
        return []


def _evaluated(individual: Any, rank: int) -> Any:
    """Costs, as a perplexity is, and all different."""
    individual.fitness.values = tuple(-10.0 - rank for _ in individual.fitness.weights)
    return individual


def _children(operator: Operator, parents: list[Any]) -> str | None:
    length, expected = len(parents[0]), len(parents)
    children = operator(*parents)
    if not isinstance(children, (tuple, list)) or len(children) != expected:
        return f"expected a tuple of {expected} individuals, as DEAP's return"
    if not all(hasattr(child, "fitness") for child in children):
        return "its children have no fitness: change the individuals in place, as DEAP's do"
    if any(len(child) != length for child in children):
        return f"of {length} genes it made {', '.join(str(len(child)) for child in children)}"
    if not all(_binary(child) for child in children):
        return "it makes genes other than 0 and 1"
    return None


def _binary(genes: Iterable[Any]) -> bool:
    return all(gene in (0, 1) for gene in genes)


def _cross(operator: Operator, people: list[Any]) -> str | None:
    return _children(operator, people[:2])


def _mutate(operator: Operator, people: list[Any]) -> str | None:
    return _children(operator, people[:1])


def _select(operator: Operator, people: list[Any]) -> str | None:
    for wanted in (len(people), len(people) // 2):  # parents, and survivors
        chosen = operator(people, wanted)
        if not isinstance(chosen, (tuple, list)) or len(chosen) != wanted:
            return f"expected a list of {wanted} of {len(people)} individuals"
        if not all(any(one is other for other in people) for one in chosen):
            return "it must return the individuals that it is given"
    return None


_TRIALS: dict[str, Callable[[Operator, list[Any]], str | None]] = {
    "crossover": _cross,
    "mutation": _mutate,
    "selection": _select,
}
