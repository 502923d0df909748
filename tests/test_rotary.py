"""Rotations on copies against the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama

from sos_deap import Evaluator, head_map
from sos_deap.models.rotary import NAME, fast_rotary, rotations
from tests.test_sharing import CHAINS
from tests.tiny import VOCABULARY, build, output

ROTARY = {"cohere", "falcon", "gemma", "gemma2", "gemma3_text", "gpt_neox", "gptj", "granite"}
ROTARY |= {"llama", "mistral", "mixtral", "modernbert", "olmo2", "phi", "phi3", "qwen2", "qwen3"}
ROTARY |= {"qwen3_moe", "smollm3", "stablelm", "starcoder2", "codegen", "ernie4_5_moe", "esm"}
ROTARY |= {"granite_swa", "granitemoe", "jina_embeddings_v3", "qwen2_moe"}
ROTARY |= {"flex_olmo", "glm", "gpt_oss", "modernbert-decoder", "nanochat", "nemotron", "persimmon"}


def run(model: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return output(model, {"input_ids": torch.randint(1, VOCABULARY, (2, 9))})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "kv_heads"), CHAINS)
def test_outputs_are_the_same_to_the_last_bit(
    family: str, kv_heads: int | None, dtype: torch.dtype
) -> None:
    model = build(family, kv_heads).to(dtype)
    found = rotations(model, head_map(model), lambda: run(model))
    assert bool(found) == (family in ROTARY)
    expected, own = run(model), [getattr(module, NAME) for module in found]
    with fast_rotary(found):
        assert torch.equal(run(model), expected)
        assert all(getattr(module, NAME) is not f for module, f in zip(found, own, strict=True))
    assert [getattr(module, NAME) for module in found] == own


def test_everything_is_restored_after_an_error() -> None:
    modules = [modeling_llama, modeling_gptj]
    own = [getattr(module, NAME) for module in modules]

    def fail() -> None:
        with fast_rotary(modules):
            assert getattr(modeling_llama, NAME) is not own[0]
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert [getattr(module, NAME) for module in modules] == own


def test_models_with_another_rotation_are_not_changed(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    genes = [1] * 11 + [0]
    expected, own = evaluator.metric(genes), modeling_llama.apply_rotary_pos_emb

    def other_numbers(q: torch.Tensor, *args: Any) -> Any:
        return own(q + q.is_contiguous(), *args)

    def views(q: torch.Tensor, *args: Any) -> Any:
        q.transpose(1, 2).view(*q.shape[::2], -1)  # raises on a copy
        return own(q, *args)

    for rotate in (other_numbers, views):
        monkeypatch.setattr(modeling_llama, NAME, rotate)
        fresh = Evaluator(evaluator.model, evaluator.task)
        assert fresh.metric(genes) == pytest.approx(expected, rel=1e-5)
        assert getattr(modeling_llama, NAME) is rotate
