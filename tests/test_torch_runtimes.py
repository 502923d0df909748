"""Pruned models in torch's own runtimes: export, compile, and dynamic int8 quantisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sos_deap import gene_map, prune
from tests.tiny import VOCABULARY, assert_close, build, output, random_order

# Heads and channels by layer: unequal groups, no heads at all, no channels at all.
KEEPS = {"heads": ["1011", "0000", "0110"], "channels": ["0101", "1000", "0000"]}
IDS = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))


def pruned_model(family: str) -> Any:
    model = build(family, 2 if family == "llama" else None)
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    chromosome = [int(bit) for part in genes.parts for bit in KEEPS[part.kind][part.layer]]
    return prune(model, chromosome, genes)


class Logits(torch.nn.Module):
    """A model without cache, from token ids to its first output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(input_ids=ids, use_cache=False)[0]
        return result


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_export(family: str) -> None:
    model = pruned_model(family)
    program = torch.export.export(Logits(model), (IDS,), strict=False)
    other = IDS.flip(1)
    assert_close(program.module()(other), output(model, {"input_ids": other}))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compile(family: str) -> None:
    """The graph is captured without a break; the backend eager runs it without a C++ compiler."""
    model = pruned_model(family)
    compiled = torch.compile(Logits(model), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(IDS), output(model, {"input_ids": IDS}))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dynamic_int8() -> None:
    model = pruned_model("llama")
    expected = output(model, {"input_ids": IDS})
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    found = output(quantized, {"input_ids": IDS})
    error = (found - expected).abs().max() / expected.abs().max()
    assert 1e-4 < error < 0.15
    kinds = [type(module).__name__ for module in quantized.modules()]
    # Three layers of q, k, v, o, gate, up and down and the head, without the 4 of the empty
    # attention and the 3 of the empty feed-forward.
    packed = [m for m in quantized.modules() if type(m) is torch.ao.nn.quantized.dynamic.Linear]
    assert len(packed) == 3 * 7 + 1 - 4 - 3
    assert kinds.count("EmptyLinear") == 4
