"""Logits in slices are the logits, for every architecture that generates text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sos_deap import head_map, masked
from sos_deap.models.families import FAMILIES
from sos_deap.models.measure import peak_bytes
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.language import Perplexity
from sos_deap.tasks.logits import logits_in_slices
from tests.tiny import VOCABULARY, assert_close, build

CAUSAL = [
    family
    for family in sorted(FAMILIES)
    if (model := build(family)).can_generate() and not model.config.is_encoder_decoder
]


@pytest.mark.parametrize("family", CAUSAL)
def test_concatenated_slices_equal_all_logits(family: str) -> None:
    model, ids = build(family), torch.randint(1, VOCABULARY, (4, 11))
    forwards = {name: module.forward for name, module in model.named_modules()}
    genes = [[1, 0, 1, 1] * (len(head_map(model)) // 4), [1] * len(head_map(model))]
    with torch.inference_mode(), masked(model, genes):
        whole = model(ids).logits
        for step in (1, 3, 10, 11):
            slices = list(logits_in_slices(model, ids, most=4 * VOCABULARY * step))
            assert [part.start for part, _ in slices] == list(range(0, 11, step))
            assert_close(torch.cat([logits for _, logits in slices], dim=1), whole)
    assert all(module.forward == forwards[name] for name, module in model.named_modules())


def test_a_body_that_the_model_does_not_run_is_an_error() -> None:
    model = build("llama")
    model.get_decoder = lambda: build("llama").model
    with pytest.raises(RuntimeError, match="LlamaModel is not what the language model runs"):
        list(logits_in_slices(model, torch.ones(1, 4, dtype=torch.long), most=VOCABULARY))


def test_perplexity_with_a_large_vocabulary_stays_small() -> None:
    model = build("llama", vocab_size=2**18)
    ids = torch.randint(2**18, (4, 64))
    task: Any = Perplexity(Sequences("random", ids))

    def score() -> Any:
        with torch.inference_mode():
            return task.score(model, slice(0, 4), 1)

    # All logits would be 268 MB, and cross-entropy as much again; a slice is 8 MiB.
    assert peak_bytes(model, score) < 2.5 * 4 * 2**21
    with torch.inference_mode():
        log = model(ids).logits[:, :-1].double().log_softmax(-1)
    expected = -log.gather(-1, ids[:, 1:, None]).sum()
    nats, tokens = score()[0].tolist()
    assert nats == pytest.approx(float(expected), rel=1e-6) and tokens == 4 * 63
