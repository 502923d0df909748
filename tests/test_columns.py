"""Columns and labels by convention, by name, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sos_deap import InputError
from sos_deap.tasks.columns import SOURCES, SUMMARIES, one, only_text, strings, texts_to_classify
from sos_deap.tasks.data import Part
from sos_deap.tasks.labels import multiple_labels, single_labels


def part(label_names: Any = None, /, **columns: list[Any]) -> Part:
    return Part("data train", columns, label_names or {})


def model(*labels: str) -> Any:
    return SimpleNamespace(
        label2id={name: i for i, name in enumerate(labels)}, num_labels=len(labels)
    )


@pytest.mark.parametrize(
    ("columns", "given", "expected"),
    [
        ("sentence label", None, ["sentence"]),
        ("idx premise hypothesis label", None, ["premise", "hypothesis"]),
        ("sentence1 sentence2 label", None, ["sentence1", "sentence2"]),
        ("question text label", None, ["text"]),
        ("a b label", "a", ["a"]),
        ("a b label", "b, a", ["b", "a"]),
    ],
)
def test_texts_to_classify(columns: str, given: str | None, expected: list[str]) -> None:
    data = part(**{name: ["x"] for name in columns.split()})
    assert texts_to_classify(data, given) == expected


def test_running_text_and_summaries() -> None:
    assert only_text(part(story=["x"]), None) == "story"
    assert only_text(part(id=[1], text=["x"]), None) == "text"
    assert only_text(part(id=[1], body=["x"]), "body") == "body"
    news = part(id=["1"], article=["x"], highlights=["y"])
    assert one(news, None, SOURCES, "text") == "article"
    assert one(news, None, SUMMARIES, "summary") == "highlights"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: only_text(p, None), "no text column: expected one named .*, found a, b; name"),
        (lambda p: only_text(p, "c"), "unknown text_column of data train 'c': known are a, b"),
        (lambda p: only_text(p, "a,b"), "text_column names 2 columns: give one"),
        (lambda p: texts_to_classify(p, "a,b,a"), "give one, or two for pairs"),
        (lambda p: one(p, None, SUMMARIES, "summary"), "no summary column: expected .*highlights"),
        (lambda p: strings(p, "b"), "has None in row 1 of its column b: expected text"),
        (lambda p: single_labels(p, None, model("x", "y")), "has no label column.*found a, b"),
        (lambda p: multiple_labels(p, None, model("x", "y")), "has no label column.*found a, b"),
    ],
)
def test_missing_columns(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(part(a=["x", "y"], b=["x", None]))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 0, 2], None),
        ([1.0, 0.0, 2.0], None),
        (["pos", "NEG", "Other"], None),
        ([0, 1, 2], ["pos", "neg", "other"]),  # the data set's own order
        ([1, 0, 2], ["positive", "negative", "mixed"]),  # names that say nothing here
    ],
)
def test_single_labels(values: list[Any], names: list[str] | None) -> None:
    data = part({"label": names} if names else None, label=values)
    assert single_labels(data, None, model("neg", "pos", "other")).tolist() == [1, 0, 2]


@pytest.mark.parametrize("value", [3, -1, 0.5, "bad", None, True])
def test_labels_beyond_the_model_s(value: Any) -> None:
    with pytest.raises(InputError, match=r"the label .* in its column label: .* classes 0 to 2 \("):
        single_labels(part(label=[0, value]), None, model("neg", "pos", "other"))


@pytest.mark.parametrize(
    "columns",
    [
        {"labels": [[0, 2], [], [1]]},
        {"labels": [["a", "c"], [], ["B"]]},
        {"label": [[1, 0, 1], [0, 0, 0], [0, 1, 0]]},
        {"id": [7, 8, 9], "c": [1, 0, 0], "a": [1, 0, 0], "b": [0, 0, 1]},  # in the model's order
        {"x": [1, 0, 0], "y": [0, 0, 1], "z": [1, 0, 0]},  # other names: in the file's
        {"x": [True, False, False], "y": [False, False, True], "z": [True, False, False]},
    ],
)
def test_several_labels(columns: dict[str, list[Any]]) -> None:
    found = multiple_labels(part(text=["x", "y", "z"], **columns), None, model("a", "b", "c"))
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({"labels": [[0, 3]]}, None, "has the label 3"),
        ({"labels": [["d"]]}, None, "has the label 'd'"),
        ({"labels": [1]}, "labels", "has 1 in its column labels: expected a list"),
        ({"a": [1], "b": [0]}, None, "has 2 columns of labels .*: the model has 3"),
        ({"a": [1], "b": [2], "c": [0]}, "a,b,c", "has the label 2: expected 0 or 1"),
    ],
)
def test_bad_labels(columns: dict[str, list[Any]], given: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        multiple_labels(part(**columns), given, model("a", "b", "c"))
