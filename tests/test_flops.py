from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sos_deap import head_map, prune
from sos_deap.models.flops import Flops
from sos_deap.models.sharing import blocks_of
from tests.tiny import VOCABULARY, build, chromosomes, output


@pytest.mark.parametrize(
    ("family", "kv_heads"),
    [("bert", None), ("gpt2", None), ("llama", None), ("llama", 4), ("opt", None), ("phi3", None)],
)
def test_sub_models_cost_what_the_sliced_model_s_operations_are(
    family: str, kv_heads: int | None
) -> None:
    model = build(family, kv_heads)
    heads, ids = head_map(model), torch.randint(1, VOCABULARY, (2, 9))
    blocks = blocks_of(model, heads)
    assert blocks is not None

    def count(model: Any) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            output(model, {"input_ids": ids})
        found: int = counter.get_total_flops()
        return found

    flops = Flops(model, heads, blocks, lambda: output(model, {"input_ids": ids}), 18)
    assert flops.total == count(model) and 0 <= flops.outside < flops.total
    for genes in chromosomes(len(heads), 4):
        mine = flops.outside + sum(
            flops.layer(depth, keep) for depth, keep in enumerate(heads.kept_heads(genes))
        )
        assert mine == pytest.approx(count(prune(model, genes)))
