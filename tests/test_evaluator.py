"""The evaluator against the plainest reference: slice, run each sequence alone, exponentiate."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from deap import algorithms, base, creator, tools

from sos_deap import Chromosome, Evaluator, InputError, batched_map, masked, prune, register
from sos_deap.search.chromosome import WORST_FITNESS
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.divergence import KL
from sos_deap.tasks.language import Perplexity
from sos_deap.tasks.objectives import OBJECTIVES, Objective, paper
from tests.conftest import GENES, small_llama


def by_hand(model: Any, ids: torch.Tensor) -> float:
    """Perplexity one sequence and one token at a time."""
    losses = []
    for row in ids:
        with torch.inference_mode():
            log_probabilities = model(row[None]).logits[0].log_softmax(-1)
        losses += [-float(log_probabilities[i, row[i + 1]]) for i in range(len(row) - 1)]
    return math.exp(sum(losses) / len(losses))


def chromosomes(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[int(rng.random() < 0.7) for _ in range(GENES)] for _ in range(count)]


def token_ids(evaluator: Evaluator) -> torch.Tensor:
    task: Any = evaluator.task
    ids: torch.Tensor = task.sequences.input_ids
    return ids


def test_metrics_are_those_of_the_sliced_model(evaluator: Evaluator) -> None:
    several = [*chromosomes(7), [1] * GENES, [0] * GENES]
    expected = [by_hand(prune(evaluator.model, c), token_ids(evaluator)) for c in several]
    assert evaluator.metrics(several) == pytest.approx(expected, rel=1e-5)
    assert evaluator.metric_of(evaluator.model, evaluator.task) == pytest.approx(
        by_hand(evaluator.model, token_ids(evaluator)), rel=1e-5
    )


def test_the_chunk_size_does_not_matter(evaluator: Evaluator) -> None:
    several = chromosomes(6)
    expected = evaluator.metrics(several)
    for tokens in (1, 16, 40, 48, 100, 10_000):  # from one sequence at a time to all at once
        other = Evaluator(evaluator.model, evaluator.task, batch_tokens=tokens)
        assert other.metrics(several) == pytest.approx(expected, rel=1e-5)
        assert other.accounting.forward_evaluations == 6


def test_duplicates_and_known_chromosomes_cost_nothing(evaluator: Evaluator) -> None:
    a, b, c = chromosomes(3)
    first = evaluator.metrics([a, b, a])
    assert first[0] == first[2]
    again = evaluator.metrics([b, c, b])
    assert again[0] == first[1]
    accounting = evaluator.accounting
    assert (accounting.evaluations, accounting.forward_evaluations) == (6, 3)
    assert accounting.cache_hits == 3
    assert accounting.tokens == 3 * 3 * 16
    assert [genes for genes, _ in evaluator.history()] == [a, b, c]
    assert evaluator.cached(c) == again[1]
    assert evaluator.cached(chromosomes(4)[3]) is None
    assert accounting.evaluations == 6  # a look-up in the cache is not an evaluation


def test_a_store_is_shared_by_evaluators_of_one_scope(evaluator: Evaluator, tmp_path: Path) -> None:
    several, path = chromosomes(5), tmp_path / "store.sqlite"
    evaluator.open_store(path)
    first = evaluator.metrics(several[:3])
    other = Evaluator(small_llama(), evaluator.task)
    other.open_store(path)  # while the first has it open
    assert other.metrics(several)[:3] == first
    accounting = other.accounting
    assert (accounting.store_hits, accounting.forward_evaluations) == (3, 2)
    assert accounting.evaluations == 5 and accounting.tokens == 2 * 3 * 16
    assert evaluator.metrics(several)[3:] == other.metrics(several)[3:]
    assert evaluator.accounting.store_hits == 2
    # Nothing is taken from another model, other data, another metric or dtype.
    evaluator.metrics([[1] * GENES])
    changed = small_llama()
    with torch.no_grad():
        changed.model.embed_tokens.weight[0] += 1
    data = Sequences("random", torch.randint(0, 2048, (3, 16)))
    for model, task in (
        (changed, evaluator.task),
        (small_llama(), Perplexity(data)),
        (small_llama(), KL(data, small_llama())),
        (small_llama().bfloat16(), evaluator.task),
        (small_llama(), lambda model: 1.0),
    ):
        different = Evaluator(model, task)
        different.open_store(path)
        different.metrics([[1] * GENES])
        assert different.accounting.store_hits == 0
        different.close_store()


@pytest.mark.parametrize(
    ("batching", "expected"),
    [
        # Rotations are tested and operations counted on one sequence; two sub-models of three,
        # then the last alone.
        ("masked", [1, 1, 1, 6, 6, 3]),
        ("shared", [1, 1, 1, 2, 2, 15]),  # tested with one sequence, then all at once
        ("auto", [1, 1, 1, 2, 2, 15]),
    ],
)
def test_passes_hold_as_many_sub_models_as_fit(
    evaluator: Evaluator, batching: str, expected: list[int]
) -> None:
    rows: list[int] = []
    embedding = evaluator.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    Evaluator(evaluator.model, evaluator.task, batch_tokens=6 * 16, batching=batching).metrics(
        chromosomes(5)
    )
    assert rows == expected


@pytest.mark.parametrize("reuse_memory", [0, 1e-6, None])
def test_how_they_are_computed_does_not_matter(
    evaluator: Evaluator, reuse_memory: float | None
) -> None:
    several = [*chromosomes(7), [1] * GENES, [0] * GENES, *chromosomes(3)]
    for parent in several[:5]:  # as a search makes them: most of a parent
        several.append([*parent[:-1], 1 - parent[-1]])
    masked_, shared_ = (
        Evaluator(evaluator.model, evaluator.task, batching=batching, reuse_memory=reuse_memory)
        for batching in ("masked", "shared")
    )
    expected = masked_.metrics(several)
    found = [metric for genes in several for metric in shared_.metrics([genes])]
    assert found == pytest.approx(expected, rel=1e-5)
    again = Evaluator(evaluator.model, evaluator.task, batching="shared").metrics(several)
    assert again == found  # to the last bit, whatever else is in the batch


def test_operations_and_layers_are_counted(evaluator: Evaluator) -> None:
    dense = Evaluator(evaluator.model, evaluator.task, batching="masked")
    dense.metrics(chromosomes(2))
    shared_ = Evaluator(evaluator.model, evaluator.task)
    shared_.metrics([[1] * GENES])
    each = (dense.accounting.flops or 0) / 2
    assert shared_.accounting.flops == pytest.approx(each) and each > 0
    assert (dense.accounting.layers, shared_.accounting.layers_computed) == (6, 3)
    shared_.metrics([[1] * 8 + [0] * 4])  # two layers are cached, and the third has no heads
    assert (shared_.accounting.layers, shared_.accounting.layers_computed) == (6, 4)
    assert each < (shared_.accounting.flops or 0) < 2 * each


def test_fitness_is_equation_1(evaluator: Evaluator) -> None:
    genes = [1] * 9 + [0] * 3
    perplexity = by_hand(prune(evaluator.model, genes), token_ids(evaluator))
    assert evaluator(genes) == pytest.approx((-perplexity * 0.75,), rel=1e-5)
    assert evaluator.many([genes, genes]) == [evaluator(genes)] * 2


def test_over_the_bound_is_worst_and_costs_nothing(evaluator: Evaluator) -> None:
    inside, above = [1] * 9 + [0] * 3, [1] * 8 + [0] * 4
    values = evaluator.many([above, inside, above], max_sparsity=0.25)
    assert values[0] == values[2] == (WORST_FITNESS,)
    assert values[1][0] > WORST_FITNESS
    accounting = evaluator.accounting
    assert (accounting.evaluations, accounting.infeasible) == (3, 2)
    assert accounting.forward_evaluations == 1


def test_another_objective_shares_what_was_computed(evaluator: Evaluator) -> None:
    """Its values are those of an evaluator of its own; what was computed is not run again."""
    several = [*chromosomes(12), [1] * GENES, [0] * GENES]
    below = [genes for genes in several if evaluator.sparsity(genes) <= evaluator.max_sparsity]
    assert 2 < len(below) < len(several)
    evaluator.many(several)
    passes: list[Any] = []
    hook = evaluator.model.register_forward_pre_hook(lambda *given: passes.append(given))

    def steep(score: float, sparsity: float) -> tuple[float, float, float]:
        return score * (1 - sparsity) ** 2, score, sparsity

    given: list[str | Objective] = [*sorted(OBJECTIVES.keys() - {"kl"}), steep]
    for objective in given:
        other = evaluator.with_objective(objective)
        fresh = Evaluator(small_llama(), evaluator.task, objective, batch_tokens=6 * 16)
        expected = fresh.many(several)
        assert [value for one in other.many(several) for value in one] == pytest.approx(
            [value for one in expected for value in one], rel=1e-5
        )
        assert (other.objectives, other.max_sparsity) == (fresh.objectives, fresh.max_sparsity)
    assert other.model is evaluator.model and not passes
    assert evaluator.objective is paper  # it keeps its own
    wide = evaluator.with_objective(max_sparsity=1)
    fresh = Evaluator(small_llama(), evaluator.task, max_sparsity=1, batch_tokens=6 * 16)
    counted = evaluator.accounting.forward_evaluations
    assert [f for (f,) in wide.many(several)] == pytest.approx(
        [f for (f,) in fresh.many(several)], rel=1e-5
    )
    hook.remove()
    assert passes and counted == len(below)
    assert evaluator.accounting.forward_evaluations == len(several)  # those above the old bound
    for wrong, message in (
        ({"objective": "papr"}, "unknown objective 'papr'"),
        ({"max_sparsity": 1.5}, "max_sparsity is 1.5"),
    ):
        with pytest.raises(InputError, match=message):
            evaluator.with_objective(**wrong)


def test_another_objective_sees_a_model_that_was_trained(evaluator: Evaluator) -> None:
    other, genes = evaluator.with_objective("metric"), [1] * GENES
    before = other(genes)
    with torch.no_grad():
        evaluator.model.lm_head.weight.mul_(0.5)
    expected = -by_hand(evaluator.model, token_ids(evaluator))
    assert other(genes)[0] == pytest.approx(expected, rel=1e-5) == evaluator(genes)[0]
    assert other(genes) != before


def test_a_metric_that_is_not_finite_is_the_worst_fitness(evaluator: Evaluator) -> None:
    """Head 5 breaks the model: sub-models that keep it compute NaN."""
    attention: Any = evaluator.model
    with torch.no_grad():
        attention.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 1e30
        attention.model.layers[1].self_attn.v_proj.weight[:] *= 1e20
    without = [1] * GENES
    without[4:8] = [0] * 4
    kept, removed = evaluator.many([[1] * GENES, without], max_sparsity=1)
    assert kept == (WORST_FITNESS,)
    assert math.isfinite(removed[0]) and removed[0] > WORST_FITNESS
    assert not math.isfinite(evaluator.metric([1] * GENES))
    assert evaluator.accounting.non_finite == 1


@pytest.mark.parametrize("batching", ["masked", "shared"])
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 7, 14])
@pytest.mark.parametrize("allocate", [torch.Tensor, bytearray])
def test_out_of_memory_halves_the_chunk(
    evaluator: Evaluator,
    limit: int,
    batching: str,
    allocate: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = chromosomes(5)
    expected = evaluator.metrics(several)
    roomy = Evaluator(evaluator.model, evaluator.task, batch_tokens=15 * 16, batching=batching)
    embedding: Any = evaluator.model.get_input_embeddings()
    forward, rows = embedding.forward, list[int]()

    def limited(ids: torch.Tensor) -> Any:
        rows.append(len(ids))
        if len(ids) > limit:
            allocate(2**60)  # the true error
        return forward(ids)

    monkeypatch.setattr(embedding, "forward", limited)
    assert roomy.metrics(several) == pytest.approx(expected, rel=1e-5)
    # If two sequences do not fit, sharing cannot be tested, and masks are used.
    assert roomy.accounting.out_of_memory == sum(n > 2 and n > limit for n in rows) > 0
    assert max(rows) == 15
    assert roomy.accounting.forward_evaluations == 5
    assert roomy.accounting.tokens == 5 * 3 * 16


def test_out_of_memory_with_one_sequence_states_what_to_do(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte")

    monkeypatch.setattr(evaluator.model, "forward", full)
    with pytest.raises(InputError, match="one example of 16 tokens does not fit in memory"):
        evaluator.metric([1] * GENES)


def test_other_errors_pass_through(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(evaluator.model, "forward", broken)
    with pytest.raises(RuntimeError, match="something else"):
        evaluator.metric([1] * GENES)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ([1] * 11, "11 genes, the model 12 heads"),
        ([1] * 11 + [2], "a gene is 2"),
        ([1] * 11 + [0.5], "a gene is 0.5"),
        ([1] * 11 + ["x"], "a gene is 'x'"),
        ([1] * 11 + [math.nan], "a gene is nan"),
        ([1 + 0j] * 12, "a gene is "),
        (numpy.ones((12, 2)), "a gene is array"),
        (None, "the chromosome is of type NoneType: give a list of 12 genes"),
        (5, "the chromosome is of type int"),
        (iter([1] * 12), "the chromosome is of type list_iterator"),
        (dict.fromkeys(range(12), 1), "the chromosome is of type dict"),
        (set(range(12)), "the chromosome is of type set"),
    ],
)
def test_bad_chromosomes(evaluator: Evaluator, genes: Any, message: str) -> None:
    uses: list[Any] = [evaluator, evaluator.gene_map.checked, evaluator.gene_map.kept_heads]
    uses += [lambda genes: prune(evaluator.model, genes)]
    uses += [lambda genes: masked(evaluator.model, [genes]).__enter__()]
    for use in uses:
        with pytest.raises(InputError, match=message):
            use(genes)
    with pytest.raises(InputError, match=r"masked\(\) was given a value of type int"):
        masked(evaluator.model, 5).__enter__()  # type: ignore[arg-type]
    assert evaluator.accounting.evaluations == 0


def test_bad_settings(evaluator: Evaluator) -> None:
    with pytest.raises(InputError, match="unknown objective 'papr': did you mean 'paper'"):
        Evaluator(evaluator.model, evaluator.task, "papr")
    with pytest.raises(InputError, match="batch_tokens is 0"):
        Evaluator(evaluator.model, evaluator.task, batch_tokens=0)
    with pytest.raises(InputError, match="unknown batching 'share': did you mean 'shared'"):
        Evaluator(evaluator.model, evaluator.task, batching="share")
    with pytest.raises(InputError, match="reuse_memory is -1"):
        Evaluator(evaluator.model, evaluator.task, reuse_memory=-1)


def test_batched_map_evaluates_a_generation_at_once(evaluator: Evaluator) -> None:
    toolbox = base.Toolbox()
    register(toolbox, evaluator, max_sparsity=0.9)
    a, b = chromosomes(2)
    individuals = [Chromosome(genes) for genes in (a, b, a)]
    expected = [toolbox.evaluate(individual)[0] for individual in individuals]
    fresh = Evaluator(evaluator.model, evaluator.task, batch_tokens=10_000, batching="masked")
    register(toolbox, fresh, max_sparsity=0.9)
    calls: list[int] = []
    fresh.model.get_input_embeddings().register_forward_pre_hook(lambda *_: calls.append(1))
    mapped = [values[0] for values in toolbox.map(toolbox.evaluate, iter(individuals))]
    assert mapped == pytest.approx(expected, rel=1e-5)
    # On one sequence rotations are tested, twice, and operations counted; then all.
    assert len(calls) == 4
    assert batched_map(fresh, individuals) == fresh.many(individuals)
    assert batched_map(len, individuals) == [GENES] * 3  # any other function


def test_the_toolbox_holds_no_copy_of_the_model(evaluator: Evaluator) -> None:
    toolbox = base.Toolbox()
    register(toolbox, evaluator)
    assert not hasattr(evaluator, "__dict__")
    assert not any(evaluator.model in vars(holder).values() for holder in [toolbox.evaluate])
    assert [r for r in gc.get_referrers(evaluator) if isinstance(r, type(toolbox.evaluate))]


@pytest.mark.parametrize(
    ("algorithm", "parameters"),
    [
        (algorithms.eaSimple, {"cxpb": 0.9, "mutpb": 1.0}),
        (algorithms.eaMuPlusLambda, {"mu": 6, "lambda_": 6, "cxpb": 0.6, "mutpb": 0.4}),
        (algorithms.eaMuCommaLambda, {"mu": 6, "lambda_": 6, "cxpb": 0.6, "mutpb": 0.4}),
    ],
)
def test_stock_algorithms_run_unchanged_and_keep_the_bound(
    evaluator: Evaluator, algorithm: Any, parameters: dict[str, Any]
) -> None:
    toolbox, hall = base.Toolbox(), tools.HallOfFame(5)
    register(toolbox, evaluator, max_sparsity=0.34, mutation_rate=0.2)
    population, logbook = algorithm(
        toolbox.population(n=6), toolbox, ngen=5, halloffame=hall, verbose=False, **parameters
    )
    assert evaluator.accounting.evaluations == sum(logbook.select("nevals"))
    assert max(individual.count(0) for individual in [*population, *hall]) == 4  # 0.34 of 12
    for individual in hall:
        perplexity = by_hand(prune(evaluator.model, individual), token_ids(evaluator))
        assert individual.fitness.values[0] == pytest.approx(
            -perplexity * (1 - individual.sparsity), rel=1e-5
        )


def test_individuals_made_by_creator_work_everywhere(evaluator: Evaluator) -> None:
    creator.create("Best", base.Fitness, weights=(1.0,))
    creator.create("Heads", list, fitness=creator.Best)
    try:
        toolbox = base.Toolbox()
        register(toolbox, evaluator)
        toolbox.register("individual", lambda: creator.Heads([1] * 11 + [0]))
        toolbox.register("population", tools.initRepeat, list, toolbox.individual)
        hall = tools.HallOfFame(1)
        algorithms.eaSimple(toolbox.population(n=4), toolbox, 0.9, 1.0, 2, None, hall, False)
        pruned = by_hand(prune(evaluator.model, hall[0]), token_ids(evaluator))
        with masked(evaluator.model, [hall[0]]):
            assert by_hand(evaluator.model, token_ids(evaluator)) == pytest.approx(pruned, 1e-5)
    finally:
        del creator.Best, creator.Heads


def test_the_model_is_put_into_evaluation_mode() -> None:
    model = small_llama().train()
    facts = {"seqlen": 1, "one_pass": True, "reference_tokens": 0, "__len__": lambda task: 1}
    facts |= {"name": "nothing", "greater_is_better": True}
    task: Any = type("Task", (), facts)()
    assert not Evaluator(model, task).model.training


def test_scores_on_some_examples_are_those_of_a_task_of_them(evaluator: Evaluator) -> None:
    ids = torch.randint(0, 2048, (6, 16))
    evaluator = Evaluator(evaluator.model, Perplexity(Sequences("all", ids)), "metric")
    genes = [1, 0, 1, 1] * 3
    for start, stop in ((0, 2), (2, 4), (2, 6), (0, 6)):
        part = Evaluator(evaluator.model, Perplexity(Sequences("part", ids[start:stop])), "metric")
        asked = Chromosome(genes, examples=(start, stop))
        assert evaluator(asked) == pytest.approx(part(genes), rel=1e-6)
    assert (
        evaluator.accounting.tokens == (2 + 2 + 2 + 6) * 16
    )  # (2, 6) continues where (2, 4) ended
    assert evaluator.spent() == {"evaluations": 2, "tokens": 12 * 16}
    assert evaluator(Chromosome(genes, examples=(2, 4))) != evaluator(genes)
    assert evaluator.accounting.cache_hits == 2
    assert [g for g, _ in evaluator.history()] == [genes]
    wrong: list[Any] = [(4, 9), (3, 3), (-1, 2), (0.0, 2.0), ("0", "1"), (True, 2), (1,), [2], "02"]
    for span in wrong:
        with pytest.raises(InputError, match=r"examples are .*: the task has 6, give None for all"):
            evaluator(Chromosome(genes, examples=span))
