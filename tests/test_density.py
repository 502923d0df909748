"""The share of parameters against counting those of the pruned model."""

from __future__ import annotations

import pytest

from sos_deap import InputError, head_map, prune
from sos_deap.models.density import sparsity_measure
from sos_deap.models.families import FAMILIES
from tests.tiny import build, chromosomes

SLICED = [name for name, family in sorted(FAMILIES.items()) if not family.unsliceable]
GROUPED = {"gemma3_text": 2, "llama": 2, "qwen3": 1, "phi3": 2}
_SETTINGS = {"falcon": {"multi_query": True, "new_decoder_architecture": False, "alibi": False}}


@pytest.mark.parametrize(
    ("family", "kv_heads"), [(name, None) for name in SLICED] + list(GROUPED.items())
)
def test_it_is_the_share_that_slicing_removes(family: str, kv_heads: int | None) -> None:
    model = build(family, kv_heads, **_SETTINGS.get(family, {}))
    heads = head_map(model)
    share = sparsity_measure(model, heads, "parameters")
    total = sum(p.numel() for p in model.parameters())
    for genes in chromosomes(len(heads), 5):
        left = sum(p.numel() for p in prune(model, genes).parameters())
        assert share(genes) * total == pytest.approx(total - left, abs=0.01)


def test_groups() -> None:
    model = build("llama", 2)
    groups = head_map(model, "group")
    share = sparsity_measure(model, groups, "parameters")
    one = [0] + [1] * (len(groups) - 1)
    left = prune(model, one, groups).num_parameters()
    assert share(one) == pytest.approx(1 - left / model.num_parameters())


def test_heads_are_counted_as_the_paper_does() -> None:
    model = build("llama")
    share = sparsity_measure(model, head_map(model), "heads")
    assert share([1] * 12) == 0
    assert share([0] * 3 + [1] * 9) == 0.25
    assert share(bytes([0] * 12)) == 1


def test_bad_densities() -> None:
    model = build("llama")
    with pytest.raises(
        InputError, match="unknown sparsity_of 'parameter': did you mean 'parameters'"
    ):
        sparsity_measure(model, head_map(model), "parameter")
    t5 = build("t5")
    with pytest.raises(InputError, match="t5 model has heads of no parameters: the heads of its"):
        sparsity_measure(t5, head_map(t5), "parameters")
