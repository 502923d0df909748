"""Operators and their parameters as a user writes them."""

from __future__ import annotations

import random
import warnings
from functools import partial
from typing import Any

import numpy
import pytest
from deap import base, tools

from sos_deap import Chromosome, Evaluator, InputError, mutSwap, register, selNSGA3, selRoulette
from sos_deap.search.choice import KINDS, UNFIT, available, choose, try_out
from sos_deap.search.chromosome import ParetoFitness, random_genes
from sos_deap.search.named import split
from sos_deap.search.operators import cxFitnessWeighted

DEFAULTS = {"indpb": 0.1, "tournsize": 3}
#: Parameters of operators that have no default.
ASKED = {
    "mutUniformInt": "low=0,up=1",
    "selDoubleTournament": "fitness_size=2,parsimony_size=1.2,fitness_first=true",
    "selEpsilonLexicase": "epsilon=0.5",
}
ALL = [(kind, name) for kind in KINDS for name in available(kind)]


def individual(fitness: Any = None) -> Any:
    return Chromosome(random_genes(12, 0.3), **({"fitness": fitness} if fitness else {}))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_operator_works_on_chromosomes(kind: str, name: str) -> None:
    choice = choose(kind, ",".join(filter(None, (name, ASKED.get(name)))), DEFAULTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # DEAP's old name of cxTwoPoint
        if choice.function is not selNSGA3:
            try_out(choice, individual)
        try_out(choice, lambda: individual(ParetoFitness))


def test_all_of_deap_s_operators_are_known_or_refused() -> None:
    stock = {
        name for name in vars(tools) for kind in KINDS.values() if name.startswith(kind.prefix)
    }
    others = {"selection", "mutation", "selNSGA3WithMemory"}  # modules, and a class
    assert stock - others <= {name for _, name in ALL} | set(UNFIT)
    assert set(UNFIT) <= stock
    assert available("selection")["selRoulette"] is selRoulette  # not DEAP's


@pytest.mark.parametrize("name", UNFIT)
def test_operators_for_other_genes_are_refused_in_one_line(name: str) -> None:
    kind = next(kind for kind, row in KINDS.items() if name.startswith(row.prefix))
    with pytest.raises(
        InputError, match=f"the {kind} {name} is for .*, not for lists of 0 and 1"
    ) as e:
        choose(kind, name, DEFAULTS)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("swap", "swap", {}),
        ("selTournament,tournsize=5", "selTournament", {"tournsize": 5}),
        ("a:b, x = 1e-3 ,y=true", "a:b", {"x": 0.001, "y": True}),
        ("f,points=[[0, 1], [1, 0]],p=null", "f", {"points": [[0, 1], [1, 0]], "p": None}),
        ("f,word=a b", "f", {"word": "a b"}),
    ],
)
def test_names_and_parameters(text: str, name: str, parameters: dict[str, Any]) -> None:
    assert split(text) == (name, parameters)


def returns_none(one: Any, other: Any) -> None:
    return None


def swaps(one: Any, other: Any, rate: float = 0.5) -> Any:
    return other, one


def plain_lists(one: Any) -> Any:
    return ([*one],)


def halves(one: Any) -> Any:
    one[0] = 0.5
    return (one,)


def grows(one: Any) -> Any:
    one.append(1)
    return (one,)


def raises(one: Any) -> Any:
    raise RuntimeError("no luck\nat all")


def few(individuals: Any, k: int) -> Any:
    return individuals[: k - 1]


def strangers(individuals: Any, k: int) -> Any:
    return [individual() for _ in range(k)]


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("crossover", "cxTwoPont", "unknown crossover 'cxTwoPont': did you mean 'cxTwoPoint'"),
        ("crossover", "selTournament", "unknown crossover 'selTournament': known are"),
        ("mutation", "mutUniformInt", "lacks low, up: write mutUniformInt,low=...,up=..."),
        ("mutation", "flip,bais=2", "unknown parameter of the mutation flip 'bais': did you"),
        ("mutation", "flip,bias=x", "bias of the mutation flip is 'x': expected float"),
        ("mutation", "flip,bias=-1", "the mutation flip fails when it is tried: ValueError: bias"),
        ("mutation", "mutSwap,moves=0", "fails when it is tried: ValueError: moves is 0"),
        ("selection", "lexicase,k=1", "the selection lexicase takes no parameters: leave k out"),
        ("selection", "tournament,tournsize=0", "tournament fails when it is tried: ValueError"),
        ("selection", "tournament,tournsize=[1,2", "cannot read the value"),
        ("selection", "tournament,tournsize=1,tournsize=2", "tournsize is given twice"),
        ("crossover", "tests.test_choice:swap", "did you mean 'swaps'"),
        ("crossover", "tests.test_choice:swaps,rate=a", "rate of the crossover tests.test_choice:"),
        ("crossover", "no.such:thing", "cannot import no.such"),
        ("crossover", returns_none, "the crossover returns_none does not fit: expected a tuple"),
        ("mutation", plain_lists, "its children have no fitness: edit the individuals in place"),
        ("mutation", halves, "it makes genes other than 0 and 1"),
        ("mutation", grows, "expected children of 12 genes, it made 13"),
        ("mutation", raises, "raises fails when it is tried: RuntimeError: no luck$"),
        ("mutation", swaps, "the mutation swaps lacks other"),
        ("mutation", dict, "the mutation dict has no signature"),
        ("selection", "nsga3", "NSGA-III is for fitness of several values"),
        ("selection", few, "few does not fit: expected a list of 8 of 8 individuals"),
        ("selection", strangers, "it must return individuals from the list that it is given"),
    ],
)
def test_operators_that_do_not_fit_are_refused_in_one_line(
    kind: str, given: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        try_out(choose(kind, given, DEFAULTS), individual)
    assert "\n" not in str(error.value)


def test_testing_an_operator_does_not_change_the_random_state() -> None:
    before = random.getstate(), numpy.random.get_state()[1].tolist()  # type: ignore[index]
    try_out(choose("selection", "nsga3", {}), lambda: individual(ParetoFitness))
    try_out(choose("mutation", "flip", DEFAULTS), partial(Chromosome, [1, 0] * 6))
    after = random.getstate(), numpy.random.get_state()[1].tolist()  # type: ignore[index]
    assert before == after


def test_rates_of_the_toolbox_are_defaults(evaluator: Evaluator) -> None:
    def registered(**flags: Any) -> Any:
        toolbox = base.Toolbox()
        register(toolbox, evaluator, mutation_rate=0.2, tournament_size=5, repair=False, **flags)
        return toolbox

    plain = registered()
    assert plain.mutate.keywords == {"indpb": 0.2, "bias": 1.0}
    assert plain.select.keywords == {"tournsize": 5} and plain.mate.func is cxFitnessWeighted
    other = registered(
        crossover="cxUniform", mutation="mutFlipBit", selection="selTournament,tournsize=2"
    )
    assert other.mate.keywords == {"indpb": 0.5}  # of crossing over, not of mutating
    assert other.mutate.keywords == {"indpb": 0.2} and other.select.keywords == {"tournsize": 2}
    own = registered(crossover=swaps, mutation=mutSwap, selection="roulette")
    assert (own.mate.func, own.mutate.func, own.select.func) == (swaps, mutSwap, selRoulette)
    with pytest.raises(InputError, match="the mutation halves does not fit"):
        registered(mutation=halves)


@pytest.mark.parametrize("mutation", ["mutFlipBit,indpb=0.9", "mutUniformInt,low=0,up=0,indpb=1"])
def test_repair_wraps_every_operator(evaluator: Evaluator, mutation: str) -> None:
    for uniform in (None, [2, 3, 4]):
        toolbox = base.Toolbox()
        register(
            toolbox,
            evaluator,
            initial_sparsity=0.3,
            max_sparsity=0.5,
            crossover="two-point",
            mutation=mutation,
            uniform=None if uniform is None else {"heads": uniform},
        )
        for _ in range(20):
            one, two = toolbox.population(n=2)
            for child in (*toolbox.mate(one, two), *toolbox.mutate(one)):
                assert child.count(0) <= 6
                if uniform:
                    assert len({sum(child[i : i + 4]) for i in (0, 4, 8)}) == 1
