"""Columns and labels by usual names, by given names, and errors."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from sos_deap import InputError
from sos_deap.tasks.data.columns import (
    SOURCES,
    SUMMARIES,
    one,
    only_text,
    strings,
    texts_to_classify,
)
from sos_deap.tasks.data.labels import multiple_labels, single_labels
from sos_deap.tasks.data.reading import Part


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
        (["1", "0", "2"], None),
        (["1.0", " 0", "2"], None),
        ([" pos", "neg ", "other"], None),
        (["pos", "NEG", "Other"], None),
        ([0, 1, 2], ["pos", "neg", "other"]),  # the data set's own order
        ([1, 0, 2], ["positive", "negative", "mixed"]),  # names without a meaning here
    ],
)
def test_single_labels(values: list[Any], names: list[str] | None) -> None:
    data = part({"label": names} if names else None, label=values)
    assert single_labels(data, None, model("neg", "pos", "other")).tolist() == [1, 0, 2]


@pytest.mark.parametrize("value", [3, -1, 0.5, "bad", None, True])
def test_labels_outside_the_model_s_classes(value: Any) -> None:
    with pytest.raises(
        InputError, match=r"label .* in row 1 of its column label: .* classes 0 to 2 \("
    ):
        single_labels(part(label=[0, value]), None, model("neg", "pos", "other"))


@pytest.mark.parametrize(
    "values", [[True, False], ["True", "false"], ["TRUE ", "FALSE"], ["1", "0"], [1.0, 0.0]]
)
def test_two_labels(values: list[Any]) -> None:
    assert single_labels(part(label=values), None, model("neg", "pos")).tolist() == [1, 0]
    assert single_labels(part(label=[True, "False"]), None, model("true", "false")).tolist() == [
        0,
        1,
    ]
    flags = multiple_labels(part(a=values, b=values[::-1]), None, model("a", "b"))
    assert flags.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("value", ["", None, math.nan])
def test_a_missing_label(value: Any) -> None:
    with pytest.raises(InputError, match=r"has no label \(.*\) in row 2 of its column label"):
        single_labels(part(label=["0", "1", value, "1"]), None, model("neg", "pos"))
    with pytest.raises(InputError, match=r"has the label .* in row 1: expected 0 or 1"):
        multiple_labels(part(a=[1, value], b=[1, 0], id=[0, 1]), None, model("a", "b"))


def test_names_of_classes_that_are_numbers() -> None:
    stars = model("1", "2", "3")
    for values in ([3, 1], ["3", "1"], [3.0, 1.0]):
        assert single_labels(part(label=values), None, stars).tolist() == [2, 0]


def test_the_names_are_those_of_the_model_s_outputs() -> None:
    """A config with an outdated label2id."""
    config = SimpleNamespace(
        id2label={0: "pos", 1: "neg"}, label2id={"LABEL_0": 0, "LABEL_1": 1}, num_labels=2
    )
    assert single_labels(part(label=["neg", "pos"]), None, config).tolist() == [1, 0]


def test_a_hidden_label_is_not_the_last_class() -> None:
    data = part({"label": ["pos", "neg"]}, label=[0, -1])
    with pytest.raises(InputError, match=r"has the label -1 in row 1"):
        single_labels(data, None, model("neg", "pos"))


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
        ({"a": [1], "b": [2], "c": [0]}, "a,b,c", "has the label 2 in row 0: expected 0 or 1"),
    ],
)
def test_bad_labels(columns: dict[str, list[Any]], given: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        multiple_labels(part(**columns), given, model("a", "b", "c"))
