from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sos_deap import head_map, prune
from sos_deap.models.flops import Flops
from sos_deap.models.sharing import blocks_of
from tests.tiny import LAYERS, VOCABULARY, WIDTH, build, chromosomes, output


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


@pytest.mark.parametrize("shared_key", [True, False])
def test_relative_positions_of_deberta_are_counted(shared_key: bool) -> None:
    kinds = ["c2p", "p2c"]
    settings: dict[str, Any] = {"share_att_key": shared_key, "position_buckets": 4}
    settings |= {"norm_rel_ebd": "layer_norm", "relative_attention": True, "pos_att_type": kinds}
    model = build("deberta-v2", **settings)
    heads, batch = head_map(model), {"input_ids": torch.randint(1, VOCABULARY, (2, 9))}
    with torch.inference_mode():
        flops = Flops(model, heads, blocks_of(model, heads) or [], lambda: model(**batch), 18)
    table = 2 * 4  # relative positions, which have a key and a query each
    projections = 2 * WIDTH * WIDTH * (4 * 18 + 2 * table)
    scores = 2 * 2 * WIDTH * (2 * 9 * 9 + 2 * 9 * table)  # by content, and by position
    feed_forward = 2 * 2 * 18 * WIDTH * 48
    assert flops.total == LAYERS * (projections + scores + feed_forward)
    assert all(parameter.requires_grad for parameter in model.parameters())
