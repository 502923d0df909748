"""Log-probabilities from tiles of logits, for every architecture that generates text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sos_deap import head_map, masked
from sos_deap.models.measure import peak_bytes
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.divergence import KL
from sos_deap.tasks.language import Perplexity
from sos_deap.tasks.logits import likeliest, log_probabilities
from tests.rows import layouts
from tests.tiny import VOCABULARY, assert_close, build

CAUSAL = [
    family
    for family in layouts()
    if (model := build(family)).can_generate() and not model.config.is_encoder_decoder
]


@pytest.fixture(params=[(1, 4), (11, 4), (3, 12), (44, 61), (44, 1000)])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of other positions and vocabularies, whole and divided."""
    positions, tokens = request.param
    monkeypatch.setattr("sos_deap.tasks.logits._TOGETHER", {"cpu": positions})
    monkeypatch.setattr("sos_deap.tasks.logits.MOST_LOGITS", {"cpu": positions * tokens})


@pytest.mark.parametrize("family", CAUSAL)
def test_log_probabilities_are_those_of_the_whole_logits(family: str, tiles: None) -> None:
    model, ids = build(family), torch.randint(1, VOCABULARY, (4, 11))
    forwards = {name: module.forward for name, module in model.named_modules()}
    genes = [[1, 0, 1, 1] * (len(head_map(model)) // 4), [1] * len(head_map(model))]
    wanted = torch.randint(VOCABULARY, (44, 3))
    positions = torch.tensor([0, 5, 11, 43])
    with torch.inference_mode(), masked(model, genes):
        logs = model(ids).logits.double().log_softmax(-1).flatten(0, 1)
        expected = logs.gather(1, wanted)
        assert_close(log_probabilities(model, ids, wanted).double(), expected)
        some = log_probabilities(model, ids, wanted[positions], positions)
        assert_close(some.double(), expected[positions])
        tokens, top, others = likeliest(model, ids, 7, wanted)
    assert_close(top.double(), logs.topk(7).values)
    assert_close(logs.gather(1, tokens), top.double())
    assert_close(others.double(), expected)
    assert all(module.forward == forwards[name] for name, module in model.named_modules())


def test_no_token_outside_the_vocabulary(tiles: None) -> None:
    model, ids = build("llama"), torch.randint(1, VOCABULARY, (1, 5))
    with torch.inference_mode():
        found = log_probabilities(model, ids, torch.tensor([[-100], [0], [60], [61], [3]]))
    assert found.isinf().flatten().tolist() == [True, False, False, True, False]


def test_gradients_are_those_of_the_whole_logits(tiles: None) -> None:
    model, ids = build("llama"), torch.randint(1, VOCABULARY, (4, 11))
    wanted = torch.randint(VOCABULARY, (44, 1))
    weight = model.lm_head.weight
    logs = model(ids).logits.log_softmax(-1).flatten(0, 1)
    expected = torch.autograd.grad(logs.gather(1, wanted).sum(), weight)[0]
    found = torch.autograd.grad(log_probabilities(model, ids, wanted).sum(), weight)[0]
    assert_close(found, expected)


def test_a_body_that_the_model_does_not_run_is_an_error() -> None:
    model = build("llama")
    model.get_decoder = lambda: build("llama").model
    with pytest.raises(RuntimeError, match="LlamaModel is not what the language model runs"):
        log_probabilities(model, torch.ones(1, 4, dtype=torch.long), torch.ones(4, 1).long())


def test_perplexity_with_a_large_vocabulary_stays_small() -> None:
    model = build("llama", vocab_size=2**18)
    ids = torch.randint(2**18, (4, 64))
    task: Any = Perplexity(Sequences("random", ids))

    def score() -> Any:
        with torch.inference_mode():
            return task.score(model, slice(0, 4), 1)

    # All logits would be 268 MB, and cross-entropy as much again; a tile is 8 MiB.
    assert peak_bytes(model, score) < 2.5 * 4 * 2**21
    with torch.inference_mode():
        log = model(ids).logits[:, :-1].double().log_softmax(-1)
    expected = -log.gather(-1, ids[:, 1:, None]).sum()
    nats, tokens = score()[0].tolist()
    assert nats == pytest.approx(float(expected), rel=1e-6) and tokens == 4 * 63


@pytest.mark.parametrize("every", [1, 3])
def test_scores_of_some_positions_are_those_of_the_whole_logits(every: int) -> None:
    model, ids = build("llama"), torch.randint(1, VOCABULARY, (4, 11))
    sequences = Sequences("random", ids, context=2)
    pruned = [[1, 0, 1, 1] * 3, [1] * 12]
    with torch.inference_mode():
        kl = KL(sequences, model, top_k=VOCABULARY, every=every)
        perplexity = Perplexity(sequences, every=every)
        dense = model(ids).logits.double().log_softmax(-1)
        with masked(model, pruned):
            found, nats = kl.score(model, slice(1, 4), 2), perplexity.score(model, slice(1, 4), 2)
        with masked(model, pruned[:1]):
            logs = model(ids).logits.double().log_softmax(-1)
    positions = list(range(0, 11, every))
    scored = [position for position in positions if 1 <= position < 10]
    divergence = (dense.exp() * (dense - logs)).sum(-1)[1:, positions].sum()
    expected = -logs.gather(2, ids.roll(-1, 1)[..., None])[1:, scored].sum()
    count = [3 * len(positions), 3 * len(scored)]
    assert found[0].tolist() == pytest.approx(
        [float(divergence), count[0], float(expected), count[1]], rel=1e-4
    )
    assert found[1, 0] == pytest.approx(0, abs=1e-5)
    assert nats[0].tolist() == pytest.approx([float(expected), count[1]], rel=1e-5)
    assert kl.metrics(kl.reference_sums.sum(0).tolist())["kl"] == 0
    assert kl.reference_sums[0, 1::2].tolist() == [len(positions), len(scored)]
    assert ("score_every" in kl.describe()) == (every > 1)
