"""One model used by several threads and copies of an evaluator, and changes of its weights."""

from __future__ import annotations

import copy
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from deap import base

from sos_deap import Evaluator, InputError, masked, register
from sos_deap.engines.attach import open_engine
from sos_deap.evaluation.evaluator import register_local
from sos_deap.models.identity import state
from tests.conftest import GENES, small_llama
from tests.test_evaluator import by_hand, chromosomes, token_ids


@pytest.fixture
def named(model_folder: Path, text_file: Path) -> Evaluator:
    """An evaluator made from names, so that it can be pickled; 4 sequences in 2 batches."""
    return Evaluator.from_pretrained(
        str(model_folder),
        dataset=str(text_file),
        seqlen=16,
        samples=4,
        heldout_samples=2,
        dtype="float32",
        batch_tokens=32,
        max_sparsity=1,
    )


@pytest.mark.parametrize("batching", ["masked", "shared"])
def test_threads_that_share_a_model_compute_what_one_does(named: Evaluator, batching: str) -> None:
    several = chromosomes(24)
    expected = Evaluator(named.model, named.task, max_sparsity=1).many(several)
    shared = Evaluator(named.model, named.task, batching=batching, max_sparsity=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(shared, several))
    assert found == [pytest.approx(values, rel=1e-5) for values in expected]
    assert shared.accounting.forward_evaluations == len(set(map(tuple, several)))


def test_threads_as_an_engine_compute_what_one_does(named: Evaluator) -> None:
    several = chromosomes(24)
    expected = Evaluator(named.model, named.task, max_sparsity=1).many(several)
    with ThreadPoolExecutor(3) as pool:
        open_engine(named, pool, workers=3)
        found = named.many(several)
        named.close_engine()
    assert found == [pytest.approx(values, rel=1e-5) for values in expected]
    assert named.accounting.layers_computed <= named.accounting.layers == 24 * 3


def test_an_evaluation_waits_for_the_masks_of_another_thread(evaluator: Evaluator) -> None:
    ids, genes = token_ids(evaluator), [0, 1] * (GENES // 2)
    with ThreadPoolExecutor(1) as pool:
        with masked(evaluator.model, [genes]):
            waiting = pool.submit(evaluator.metric, [1] * GENES)
        assert waiting.result() == pytest.approx(by_hand(evaluator.model, ids), rel=1e-5)


def step(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)


@pytest.mark.parametrize("change", [step, lambda model: model.bfloat16()])
def test_a_changed_model_is_evaluated_again(
    evaluator: Evaluator, tmp_path: Path, change: Any
) -> None:
    genes = [[1] * GENES, [1] * 10 + [0] * 2, [1] * 9 + [0] * 3]
    path = tmp_path / "store.sqlite"
    evaluator.open_store(path)
    before = evaluator.metrics(genes[:2])
    wanda = evaluator.importance("wanda")
    change(evaluator.model)
    after = evaluator.metrics(genes)  # known ones, and one whose first layers are known
    fresh = Evaluator(evaluator.model, evaluator.task)
    assert after == fresh.metrics(genes) and after[:2] != before
    assert evaluator.importance("wanda") == fresh.importance("wanda") != wanda
    evaluator.close_store()
    unchanged = Evaluator(small_llama(), evaluator.task)
    unchanged.open_store(path)
    assert unchanged.metrics(genes[:2]) == before
    unchanged.close_store()


def test_an_undetectable_change_takes_effect_after_clear(evaluator: Evaluator) -> None:
    genes = [[1] * 10 + [0] * 2, [1] * 9 + [0] * 3]
    evaluator.metrics(genes[:1])
    for parameter in evaluator.model.parameters():
        parameter.data.mul_(1.05)
    evaluator.clear()
    assert evaluator.metrics(genes) == Evaluator(evaluator.model, evaluator.task).metrics(genes)


def test_a_change_is_checked_once_per_batch_and_also_before_validation(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    genes = [[1] * GENES, [1] * 10 + [0] * 2]
    judged = Evaluator(evaluator.model, evaluator.task, validation=evaluator.task)
    before, calls = judged.validate(genes), list[Any]()

    def counted(model: Any) -> Any:
        calls.append(model)
        return state(model)

    monkeypatch.setattr("sos_deap.evaluation.metrics.state", counted)
    assert judged.validate(genes) == judged.many(genes) == before
    assert len(calls) == 2
    step(evaluator.model)
    fresh = Evaluator(evaluator.model, evaluator.task).many(genes)
    assert judged.validate(genes) == judged.many(genes) == fresh != before


def test_a_model_must_not_change_under_a_journal_or_a_worker(
    named: Evaluator, tmp_path: Path
) -> None:
    named.open_journal(tmp_path / "journal.jsonl")
    step(named.model)
    with pytest.raises(InputError, match="changed while a journal or an engine is open"):
        named.metric([1] * GENES)
    named.close_journal()
    named.metric([1] * GENES)
    with pytest.raises(InputError, match="its model was changed"):
        pickle.dumps(named)  # another process would load it as it was


def test_dropout_is_off_while_it_evaluates_and_each_module_keeps_its_mode() -> None:
    model = small_llama()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    ids = torch.randint(0, 2048, (3, 16))
    expected = by_hand(model, ids)
    evaluator = Evaluator(model, lambda model: by_hand(model, ids))
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    assert evaluator.metric([1] * GENES) == expected
    assert evaluator.metric_of(model, evaluator.task) == expected
    assert [module.training for module in model.modules()] == modes


def pickled(one: Evaluator) -> Any:
    return pickle.loads(pickle.dumps(one))


def test_copies_have_an_objective_of_their_own_and_share_the_model(named: Evaluator) -> None:
    genes = [1] * 9 + [0] * 3
    metric = Evaluator(named.model, named.task, "metric", max_sparsity=1)
    metric._recipe = dict(named._recipe or {})
    register_local(named.recipe, named)
    before = named(genes), metric(genes)
    assert before[0] != before[1]
    for copied in (pickled, copy.deepcopy):
        several = [copied(named), copied(metric), copied(named)]
        assert [one(genes) for one in several] == [before[0], before[1], before[0]]
        assert len({id(one) for one in several}) == 3
        assert all(one.model is named.model for one in several)
    assert named(genes) == before[0]


def test_a_toolbox_registered_again_has_nothing_of_the_first(evaluator: Evaluator) -> None:
    toolbox = base.Toolbox()
    first = Evaluator(evaluator.model, evaluator.task, validation=evaluator.task)
    register(toolbox, first)
    assert toolbox.search.validation is not None
    register(toolbox, evaluator)
    assert toolbox.search.validation is None


def drawing(model: Any) -> float:
    """A metric that draws random numbers from each generator."""
    return random.random() + float(numpy.random.random()) + float(torch.rand(()))


def seeding(model: Any) -> float:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    return drawing(model)


@pytest.mark.parametrize("metric", [drawing, seeding])
def test_what_a_metric_draws_depends_on_the_chromosome_alone(metric: Any) -> None:
    several, model = chromosomes(6), small_llama()
    forwards = Evaluator(model, metric).metrics(several)
    random.seed(5)
    torch.manual_seed(5)
    states = random.getstate(), torch.get_rng_state()
    backwards = Evaluator(model, metric).metrics(several[::-1])
    assert backwards == forwards[::-1]
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert (len(set(forwards)) > 1) == (metric is drawing)


def test_layers_are_counted_once_for_all_slices_of_the_examples(evaluator: Evaluator) -> None:
    slices = Evaluator(evaluator.model, evaluator.task, batch_tokens=16)  # a sequence each
    slices.metrics(chromosomes(5))
    whole = Evaluator(evaluator.model, evaluator.task)
    whole.metrics(chromosomes(5))
    assert slices.accounting.layers == whole.accounting.layers == 5 * 3
    assert slices.accounting.layers_computed == whole.accounting.layers_computed <= 5 * 3


def test_an_evaluation_ends_between_two_batches(evaluator: Evaluator) -> None:
    batches: list[int] = []
    slices = Evaluator(evaluator.model, evaluator.task, batch_tokens=16, batching="shared")
    slices.metric([1] * GENES)
    slices.clear()

    def check() -> None:
        batches.append(1)
        if len(batches) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError), slices.interruptible(check):
        slices.metrics(chromosomes(4))
    assert len(batches) == 2
    expected = Evaluator(evaluator.model, evaluator.task, batch_tokens=16).metrics(chromosomes(4))
    assert slices.metrics(chromosomes(4)) == pytest.approx(expected, rel=1e-5)


def test_an_evaluator_without_a_toolbox_keeps_to_the_maximum_sparsity(evaluator: Evaluator) -> None:
    """Without a maximum, the paper's fitness is best for the model without heads."""
    nothing, most = [0] * GENES, [1] * 9 + [0] * 3
    assert evaluator(nothing) < evaluator(most)
    assert evaluator(nothing, max_sparsity=1) > evaluator(most)
    with pytest.raises(InputError, match=r"max_sparsity is 1.5: a sparsity lies in \[0, 1\]"):
        Evaluator(evaluator.model, evaluator.task, max_sparsity=1.5)


def test_a_model_without_weights_is_refused(evaluator: Evaluator) -> None:
    with pytest.raises(InputError, match="on the device meta, without weights"):
        Evaluator(small_llama().to("meta"), evaluator.task)


def test_inside_masked_an_evaluator_is_refused_and_keeps_nothing(evaluator: Evaluator) -> None:
    genes = [1] * GENES
    with masked(evaluator.model, [[0, 1] * (GENES // 2)]):
        for use in (evaluator.metric, evaluator):
            with pytest.raises(InputError, match=r"inside masked\(\).*use the evaluator outside"):
                use(genes)
        copied = copy.deepcopy(evaluator.model)  # which has no mask
    expected = by_hand(small_llama(), token_ids(evaluator))
    assert evaluator.metric(genes) == pytest.approx(expected, rel=1e-5)
    assert Evaluator(copied, evaluator.task).metric(genes) == pytest.approx(expected, rel=1e-5)
