from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from sos_deap import InputError
from sos_deap.models.pretrained import BUILTIN
from sos_deap.tasks.data import Text, cut_sequences, read_text


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


def test_a_file_is_cut_in_the_middle_between_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text("one one one\n\ntwo two two\n\nthree three three")
    calibration, heldout = read_text(str(path))
    assert calibration.documents == ["one one one\n\ntwo two two"]
    assert heldout.documents == ["three three three"]
    assert calibration.split == "first half of two.txt"


def test_text_without_paragraphs_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("abcdef")
    calibration, heldout = read_text(str(path))
    assert (calibration.documents, heldout.documents) == (["abc"], ["def"])


def test_builtin_parts_are_different_splits() -> None:
    calibration, heldout = read_text("builtin:pydoc")
    assert not set(calibration.documents) & set(heldout.documents)


def test_sequences_are_the_text_s_tokens_without_overlap(tokenizer: Any) -> None:
    documents = ["Return a list.", "Raise an error if the value is negative."]
    expected = tokenizer(documents[0])["input_ids"] + [tokenizer.eos_token_id]
    expected += tokenizer(documents[1])["input_ids"]
    sequences = cut_sequences(Text("x", documents), tokenizer, seqlen=4)
    count = len(expected) // 4
    assert sequences.input_ids.flatten().tolist() == expected[: count * 4]


def test_samples_are_drawn_by_the_seed_without_repetition(tokenizer: Any) -> None:
    text = Text("x", [" ".join(f"value {i}" for i in range(300))])
    all_rows = {tuple(r) for r in cut_sequences(text, tokenizer, 8).input_ids.tolist()}
    state = torch.get_rng_state()
    first = cut_sequences(text, tokenizer, 8, samples=5, seed=1).input_ids
    assert torch.equal(first, cut_sequences(text, tokenizer, 8, samples=5, seed=1).input_ids)
    assert not torch.equal(first, cut_sequences(text, tokenizer, 8, samples=5, seed=2).input_ids)
    assert len({tuple(r) for r in first.tolist()} & all_rows) == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert len(cut_sequences(text, tokenizer, 8, samples=10**6).input_ids) == len(all_rows)


def test_the_description_tells_data_apart(tokenizer: Any) -> None:
    one, two = (cut_sequences(Text("x", [t * 20]), tokenizer, 4).describe() for t in ("a b", "a c"))
    assert one["tokens"] == one["sequences"] * 4
    assert one["token_hash"] != two["token_hash"]


def test_a_data_set_folder_is_read_by_datasets(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(
            f'{{"text": "{split} one"}}\n{{"text": "{split} two"}}\n'
        )
    calibration, heldout = read_text(str(folder))
    assert list(calibration.documents) == ["train one", "train two"]
    assert list(heldout.documents) == ["test one", "test two"]
    (folder / "test.jsonl").unlink()
    calibration, heldout = read_text(str(folder))
    assert (list(calibration.documents), list(heldout.documents)) == (["train one"], ["train two"])
    (folder / "train.jsonl").write_text('{"a": "x", "b": "y"}\n')
    with pytest.raises(InputError, match="no text column: expected 'text', found a, b"):
        read_text(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "does not exist"),
        ("empty.txt", b" \n", "is empty"),
        ("latin.txt", b"caf\xe9", "is not UTF-8"),
        ("table.xlsx", b"x", "give a .txt file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_text(str(tmp_path / name))


def test_bad_names() -> None:
    with pytest.raises(InputError, match="unknown data set 'builtin:pydocs': did you mean"):
        read_text("builtin:pydocs")
    with pytest.raises(InputError, match="cannot load the data set no/such"):
        read_text("no/such")


def test_too_few_tokens(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"x has 2 tokens, fewer than one sequence of 64"):
        cut_sequences(Text("x", ["a b"]), tokenizer, 64)
