"""Text to token sequences, and draws of examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from sos_deap import InputError
from sos_deap.models.sources import BUILTIN
from sos_deap.tasks.data.draw import Draw
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.data.sequences import (
    Sequences,
    SpecialTokens,
    cut_sequences,
    running_text,
    special_tokens,
    start_of_sequences,
)
from sos_deap.tasks.registry import _refit_task


def cut(
    tokenizer: Any,
    documents: list[str],
    separator: str | None,
    seqlen: int,
    samples: int | None = None,
    seed: int = 0,
    skip: int = 0,
    special: SpecialTokens | None = None,
) -> Sequences:
    part = Part("x", {"text": documents}, {}, separator)
    draw = Draw("calibration", part, samples, seed, skip)
    return cut_sequences(draw, documents, tokenizer, seqlen, special)


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


def test_sequences_are_the_text_s_tokens_without_overlap(tokenizer: Any) -> None:
    documents = ["Return a list.", "Raise an error if the value is negative."]
    expected = tokenizer(documents[0])["input_ids"] + [tokenizer.eos_token_id]
    expected += tokenizer(documents[1])["input_ids"]
    sequences = cut(tokenizer, documents, None, 4)
    count = len(expected) // 4
    assert sequences.input_ids.flatten().tolist() == expected[: count * 4]
    joined = tokenizer("\n\n".join(documents))["input_ids"]
    sequences = cut(tokenizer, documents, "\n\n", 4)
    assert sequences.input_ids.flatten().tolist() == joined[: len(joined) // 4 * 4]


def test_samples_are_drawn_by_the_seed_without_repetition(tokenizer: Any) -> None:
    text = [" ".join(f"value {i}" for i in range(300))]

    def ids(samples: int | None = None, seed: int = 0, skip: int = 0) -> torch.Tensor:
        return cut(tokenizer, text, "", 8, samples, seed, skip).input_ids

    all_rows = {tuple(row) for row in ids().tolist()}
    state = torch.get_rng_state()
    assert torch.equal(ids(5, 1), ids(5, 1))
    assert not torch.equal(ids(5, 1), ids(5, 2))
    assert len({tuple(row) for row in ids(5, 1).tolist()} & all_rows) == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert len(ids(10**6)) == len(all_rows)
    assert torch.equal(torch.cat((ids(5, 1), ids(3, 1, skip=5))), ids(8, 1))
    assert Draw("calibration", None, None, 0).numbers(4) == [0, 1, 2, 3]
    assert sorted(Draw("calibration", None, 9, 0).numbers(4)) == [0, 1, 2, 3]
    assert len(Draw("validation", None, 9, 0, skip=3).numbers(4)) == 1
    with pytest.raises(InputError, match=r"left for validation: there are 4, and 4 are taken"):
        Draw("validation", None, 2, 0, skip=4).numbers(4)


def test_encoders_get_special_tokens_in_every_sequence(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 0)]
    )
    assert special_tokens(tokenizer) == SpecialTokens([0], [0])
    text = "Raise an error if the value is negative."
    inner = tokenizer(text, add_special_tokens=False)["input_ids"]
    sequences = cut(tokenizer, [text], "", 5, special=special_tokens(tokenizer))
    rows = [[0, *inner[i : i + 3], 0] for i in range(0, len(inner) // 3 * 3, 3)]
    assert sequences.input_ids.tolist() == rows


@pytest.mark.parametrize(
    ("puts", "bos", "how", "before", "described"),
    [
        ("", None, "auto", [], "none"),
        ("", "<|end|>", "auto", [], "none"),
        ("", "<|end|>", "each", [0], "<|end|> in each sequence"),
        ("", "<|end|>", "none", [], "none"),
        ("<|end|> ", "<|end|>", "auto", [0], "<|end|> in each sequence"),
        ("<|end|> <|end|> ", None, "auto", [0, 0], "<|end|><|end|> in each sequence"),
        ("<|end|> ", None, "each", [0], "<|end|> in each sequence"),
        ("<|end|> ", "<|end|>", "none", [], "<|end|> before the text alone"),
    ],
)
def test_where_a_start_token_stands(
    tokenizer: Any, puts: str, bos: str | None, how: str, before: list[int], described: str
) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{puts}$A", special_tokens=[("<|end|>", 0)]
    )
    tokenizer.bos_token = bos
    special = start_of_sequences(tokenizer, how)
    assert (list(special.before), list(special.after)) == (before, [])
    text = "Raise an error if the value is negative."
    sequences = cut(tokenizer, [text], "", 5, special=special)
    assert sequences.describe()["start_token"] == described
    assert sequences.context == max(1, len(before))
    ids = tokenizer(text, add_special_tokens=not before)["input_ids"]
    inner = 5 - len(before)
    rows = [before + ids[i : i + inner] for i in range(0, len(ids) // inner * inner, inner)]
    assert sequences.input_ids.tolist() == rows


def test_a_start_token_that_the_tokenizer_lacks(tokenizer: Any) -> None:
    tokenizer.bos_token = None
    with pytest.raises(InputError, match="start_token is each, and the tokenizer has no start to"):
        start_of_sequences(tokenizer, "each")


def test_descriptions_of_different_data_differ(tokenizer: Any) -> None:
    one, two = (cut(tokenizer, [t * 20], "", 4).describe() for t in ("a b", "a c"))
    assert one["tokens"] == one["sequences"] * 4
    assert one["token_hash"] != two["token_hash"]


def test_too_few_tokens(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"x has 2 tokens, fewer than one sequence of 64"):
        cut(tokenizer, ["a b"], "", 64)


def part(**columns: list[Any]) -> Part:
    return Part("x", columns, {})


def test_held_out_examples_are_not_drawn_for_calibration() -> None:
    long, other = "a paragraph " * 10, "another one " * 10
    seen, unseen = part(text=["= Title =", long, other]), part(text=["= Title =", long])
    calibration = running_text(Draw("calibration", seen, None, 0, excluded=(unseen,)), None)
    assert calibration == ["= Title =", other]  # a heading is no example
    assert running_text(Draw("held-out", unseen, None, 0), None) == ["= Title =", long]
    seen, unseen = part(text=["a", "b", "c", "b"]), part(text=["b", "d"])

    def texts(part: Part) -> list[Any]:
        return list(part.columns["text"])

    rows = Draw("calibration", seen, 9, seed=0, excluded=(unseen,)).rows(texts)
    assert sorted(rows) == [0, 2] and Draw("held-out", unseen, None, 0).rows(texts) == [0, 1]
    with pytest.raises(InputError, match="every calibration example is also a held-out example"):
        Draw("calibration", unseen, 9, 0, excluded=(unseen,)).rows(texts)


def test_several_parts_are_excluded() -> None:
    seen, one, two = part(text=["a", "b", "c"]), part(text=["b"]), part(text=["a", "d"])
    rows = Draw("refit", seen, 9, 0, excluded=(one, two)).rows(lambda p: p.columns["text"])
    assert rows == [2]


def test_the_foreign_half_of_a_refit_has_no_held_out_text_of_either_data_set() -> None:
    own, other, heldout, others = (part(text=[name]) for name in "abcd")
    refit = Draw("refit", own, 4, 0, excluded=(heldout,))
    draws: Any = _refit_task(lambda *given: given, refit, (other, others))  # type: ignore[arg-type]
    assert [draw.part for draw in draws] == [own, other]
    assert [draw.excluded for draw in draws] == [(heldout,), (heldout, others)]
