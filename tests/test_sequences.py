"""Text to token sequences, and which examples are drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from sos_deap import InputError
from sos_deap.models.pretrained import BUILTIN
from sos_deap.tasks.data import Part
from sos_deap.tasks.sequences import apart, around, cut_sequences, drawn, running_text
from sos_deap.tasks.settings import TaskSettings


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


def test_sequences_are_the_text_s_tokens_without_overlap(tokenizer: Any) -> None:
    documents = ["Return a list.", "Raise an error if the value is negative."]
    expected = tokenizer(documents[0])["input_ids"] + [tokenizer.eos_token_id]
    expected += tokenizer(documents[1])["input_ids"]
    sequences = cut_sequences("x", documents, None, tokenizer, 4)
    count = len(expected) // 4
    assert sequences.input_ids.flatten().tolist() == expected[: count * 4]
    joined = tokenizer("\n\n".join(documents))["input_ids"]
    sequences = cut_sequences("x", documents, "\n\n", tokenizer, 4)
    assert sequences.input_ids.flatten().tolist() == joined[: len(joined) // 4 * 4]


def test_samples_are_drawn_by_the_seed_without_repetition(tokenizer: Any) -> None:
    text = [" ".join(f"value {i}" for i in range(300))]

    def ids(samples: int | None = None, seed: int = 0) -> torch.Tensor:
        return cut_sequences("x", text, "", tokenizer, 8, samples=samples, seed=seed).input_ids

    all_rows = {tuple(row) for row in ids().tolist()}
    state = torch.get_rng_state()
    assert torch.equal(ids(5, 1), ids(5, 1))
    assert not torch.equal(ids(5, 1), ids(5, 2))
    assert len({tuple(row) for row in ids(5, 1).tolist()} & all_rows) == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert len(ids(10**6)) == len(all_rows)
    assert drawn(4, None, 0) == [0, 1, 2, 3]
    assert sorted(drawn(4, 9, 0)) == [0, 1, 2, 3]


def test_encoders_get_whole_sequences(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 0)]
    )
    assert around(tokenizer) == ([0], [0])
    text = "Raise an error if the value is negative."
    inner = tokenizer(text, add_special_tokens=False)["input_ids"]
    sequences = cut_sequences("x", [text], "", tokenizer, 5, whole=True)
    rows = [[0, *inner[i : i + 3], 0] for i in range(0, len(inner) // 3 * 3, 3)]
    assert sequences.input_ids.tolist() == rows


def test_the_description_tells_data_apart(tokenizer: Any) -> None:
    one, two = (cut_sequences("x", [t * 20], "", tokenizer, 4).describe() for t in ("a b", "a c"))
    assert one["tokens"] == one["sequences"] * 4
    assert one["token_hash"] != two["token_hash"]


def test_too_few_tokens(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"x has 2 tokens, fewer than one sequence of 64"):
        cut_sequences("x", ["a b"], "", tokenizer, 64)


def part(**columns: list[Any]) -> Part:
    return Part("x", columns, {})


def test_what_is_held_out_is_not_calibrated_on() -> None:
    long, other = "a paragraph " * 10, "another one " * 10
    calibration, heldout = running_text(
        (part(text=["= Title =", long, other]), part(text=["= Title =", long])), None
    )
    assert calibration == ["= Title =", other]  # a heading is no example
    assert heldout == ["= Title =", long]
    texts = (["a", "b", "c", "b"], ["b", "d"])
    rows, held = apart(texts, TaskSettings(samples=9), seed=0)
    assert sorted(rows) == [0, 2] and held == [0, 1]
    with pytest.raises(InputError, match="every calibration example is held out too"):
        apart((["b"], ["b"]), TaskSettings(), seed=0)
