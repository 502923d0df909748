from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sos_deap.models.attention import NAME, causal_attention, fast_attention
from tests.tiny import VOCABULARY, build, output


@pytest.mark.parametrize("tokens", [1, 7, 32, 33, 300])
def test_it_is_causal_attention(tokens: int) -> None:
    query, key, value = (torch.randn(2, 3, tokens, 8) for _ in range(3))
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    found = causal_attention(query, key, value, 0.3)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("family", "kv_heads"),
    [("gpt2", None), ("gpt_neox", None), ("llama", 2), ("mistral", 2), ("opt", None), ("phi3", 1)],
)
def test_models_have_the_same_outputs_with_it(family: str, kv_heads: int | None) -> None:
    model = build(family, kv_heads).bfloat16()
    ids = torch.randint(1, VOCABULARY, (2, 40 if family != "mistral" else 9))
    expected = output(model, {"input_ids": ids}).float()
    with fast_attention(model):
        assert model.config._attn_implementation == NAME
        found = output(model, {"input_ids": ids}).float()
    assert model.config._attn_implementation == "sdpa"
    assert (found - expected).abs().max() <= 2e-2 * expected.abs().max()  # bfloat16 has 8 bits


def test_padding_and_other_dtypes_use_the_stock_attention() -> None:
    model = build("llama", 2).bfloat16()
    ids, mask = torch.randint(1, VOCABULARY, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    expected = output(model, batch)
    with fast_attention(model):
        assert torch.equal(output(model, batch), expected)
    with fast_attention(model.float()):
        assert model.config._attn_implementation == "sdpa"
