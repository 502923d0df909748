"""Crossover, mutation and selection by name: this package's, DEAP's, or the user's function.

DEAP's operators for genes other than 0 and 1 are refused by name, and operators are tested on a few
individuals before a search begins.
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

#: Short names of crossovers; DEAP's and this package's are also known by their function's name.
CROSSOVERS: dict[str, Operator] = {
    "balanced": operators.cxBalanced,
    "one-point": tools.cxOnePoint,
    "paper": operators.cxFitnessWeightedPaper,
    "sign-aware": operators.cxFitnessWeighted,
    "two-point": tools.cxTwoPoint,
    "uniform": tools.cxUniform,
}

#: Short names of mutations.
MUTATIONS: dict[str, Operator] = {
    "flip": operators.mutSparsityFlipBit,
    "swap": operators.mutSwap,
}

#: Short names of selections.
SELECTIONS: dict[str, Operator] = {
    "lexicase": tools.selLexicase,
    "nsga2": tools.selNSGA2,
    "nsga3": selection.selNSGA3,
    "roulette": selection.selRoulette,
    "spea2": tools.selSPEA2,
    "tournament": tools.selTournament,
}

#: DEAP's operators that do not suit chromosomes, with what they are for. (Those for permutations do
#: not fail on 0/1 genes, but their result has no meaning.)
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
    "selTournamentDCD": "loops that assign crowding distances, unlike DEAP's own",
}


class Choice(NamedTuple):
    """An operator with its parameters.

    :param kind: a key of :data:`KINDS`.
    :param name: the name that the user gave.
    :param function: the operator.
    :param parameters: keyword arguments of the operator.
    """

    kind: str
    name: str
    function: Operator
    parameters: dict[str, Any]

    @property
    def what(self) -> str:
        """The name of the operator in messages, such as ``"the mutation flip"``."""
        return f"the {self.kind} {self.name}"


class Kind(NamedTuple):
    """A kind of operator.

    :param rows: the table of short names.
    :param prefix: how DEAP's names of this kind begin.
    :param places: number of arguments that DEAP's algorithms pass by position.
    """

    rows: Mapping[str, Operator]
    prefix: str
    places: int


#: Kinds of operators by the name of their flag.
KINDS = {
    "crossover": Kind(CROSSOVERS, "cx", 2),
    "mutation": Kind(MUTATIONS, "mut", 1),
    "selection": Kind(SELECTIONS, "sel", 2),
}


def available(kind: str) -> dict[str, Operator]:
    """Return all operators of a kind that work on chromosomes, by name.

    An operator of this package takes precedence over one of DEAP's with the same name.

    :param kind: a key of :data:`KINDS`.
    """
    rows, prefix, _ = KINDS[kind]
    found = {
        name: function
        for module in (tools, operators, selection)  # later modules take precedence
        for name, function in vars(module).items()
        if name.startswith(prefix) and inspect.isfunction(function) and name not in UNFIT
    }
    return found | dict(rows)


def choose(kind: str, given: str | Operator, defaults: Mapping[str, Any]) -> Choice:
    """Return the operator that a user chose, with its parameters.

    :param kind: a key of :data:`KINDS`.
    :param given: the operator itself, or ``NAME,key=value,...``, where NAME is a short name, the
        name of an operator of DEAP or of this package, or ``module:function``.
    :param defaults: parameters to pass if the operator has them and the user did not give them.
    :raises InputError: for an unknown name, an operator for other genes, a parameter that the
        operator does not have, and a missing one.
    """
    name, parameters = (name_of(given), {}) if callable(given) else split(given)
    if name in UNFIT:
        raise InputError(
            f"the {kind} {name} is for {UNFIT[name]}, not for lists of 0 and 1: use one of "
            f"{', '.join(sorted(available(kind)))}"
        )
    function = given if callable(given) else look_up(kind, name, available(kind))
    own = set(_names(function)[KINDS[kind].places :])
    parameters = {key: value for key, value in defaults.items() if key in own} | parameters
    choice = Choice(kind, name, function, parameters)
    check_parameters(choice.what, function, parameters, KINDS[kind].places)
    if function in available(kind).values():  # the limits of a user's function are unknown
        check_sizes(choice.what, parameters)
    return choice


def try_out(choice: Choice, individual: Callable[[], Any]) -> None:
    """Test an operator on a few individuals, so that a wrong one fails before a search begins.

    The state of Python's and NumPy's random generators is restored.

    :param choice: the operator.
    :param individual: function that makes an individual.
    :raises InputError: if the operator raises an exception, or returns something that DEAP's
        algorithms cannot use.
    """
    states = random.getstate(), numpy.random.get_state()
    try:
        for _ in range(5):
            individuals = [_evaluated(individual(), i) for i in range(8)]
            operator = partial(choice.function, **choice.parameters)
            wrong = _TRIALS[choice.kind](operator, individuals)
            if wrong:
                raise InputError(f"{choice.what} does not fit: {wrong}")
    except InputError:
        raise
    except Exception as error:  # an operator may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{choice.what} fails when it is tried: {reason}") from error
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def _names(function: Operator) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # check_parameters raises the error
        return []


def _evaluated(individual: Any, rank: int) -> Any:
    """Set a fitness that is negative, as of a cost such as perplexity, and differs by rank."""
    individual.fitness.values = tuple(-10.0 - rank for _ in individual.fitness.weights)
    return individual


def _children(operator: Operator, parents: list[Any]) -> str | None:
    """Return what is wrong with the children that an operator makes, or ``None``."""
    length, expected = len(parents[0]), len(parents)
    children = operator(*parents)
    if not isinstance(children, (tuple, list)) or len(children) != expected:
        return f"expected a tuple of {expected} individuals, as from DEAP's operators"
    if not all(hasattr(child, "fitness") for child in children):
        return "its children have no fitness: edit the individuals in place, as DEAP's operators do"
    if any(len(child) != length for child in children):
        lengths = ", ".join(str(len(child)) for child in children)
        return f"expected children of {length} genes, it made {lengths}"
    if not all(_binary(child) for child in children):
        return "it makes genes other than 0 and 1"
    return None


def _binary(genes: Iterable[Any]) -> bool:
    return all(gene in (0, 1) for gene in genes)


def _cross(operator: Operator, individuals: list[Any]) -> str | None:
    return _children(operator, individuals[:2])


def _mutate(operator: Operator, individuals: list[Any]) -> str | None:
    return _children(operator, individuals[:1])


def _select(operator: Operator, individuals: list[Any]) -> str | None:
    size = len(individuals)
    for wanted in (size, size // 2):  # of parents, and of survivors
        chosen = operator(individuals, wanted)
        if not isinstance(chosen, (tuple, list)) or len(chosen) != wanted:
            return f"expected a list of {wanted} of {size} individuals"
        if not all(any(one is other for other in individuals) for one in chosen):
            return "it must return individuals from the list that it is given, not copies"
    return None


_TRIALS: dict[str, Callable[[Operator, list[Any]], str | None]] = {
    "crossover": _cross,
    "mutation": _mutate,
    "selection": _select,
}
