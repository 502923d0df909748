"""Reading data sets: local files of every type, folders, splits, streams."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from sos_deap import InputError
from sos_deap.tasks.data.local import local_tables
from sos_deap.tasks.data.reading import Part, read_parts
from sos_deap.tasks.settings import TaskSettings

ROWS = [
    {"text": f'text {i}, with a comma and a "quotation" mark', "label": i % 2} for i in range(6)
]


def columns(part: Part) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in part.columns.items()}


def test_a_text_file_is_cut_in_the_middle_between_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text("one one one\n\ntwo two two\n\nthree three three")
    calibration, heldout = read_parts(str(path))
    assert columns(calibration) == {"text": ["one one one\n\ntwo two two"]}
    assert columns(heldout) == {"text": ["three three three"]}
    assert calibration.split == "first half of two.txt"


def test_text_without_paragraphs_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("abcdef")
    calibration, heldout = read_parts(str(path))
    assert (columns(calibration)["text"], columns(heldout)["text"]) == (["abc"], ["def"])


def test_builtin_parts_are_different_splits() -> None:
    calibration, heldout = read_parts("builtin:pydoc")
    assert not set(calibration.columns["text"]) & set(heldout.columns["text"])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows to a file of the type given by its suffix."""
    data: Any = Dataset.from_list(rows)
    if path.suffix == ".csv":
        data.to_csv(path)
    elif path.suffix == ".tsv":  # as GLUE writes it: no quoting
        lines = ["\t".join(rows[0])] + ["\t".join(map(str, row.values())) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        data.to_json(path)
    else:
        data.to_parquet(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_tables_of_every_type(tmp_path: Path, suffix: str, capfd: Any) -> None:
    write(tmp_path / f"rows{suffix}", ROWS)
    capfd.readouterr()
    calibration, heldout = read_parts(str(tmp_path / f"rows{suffix}"))
    expected = {name: [row[name] for row in ROWS] for name in ("text", "label")}
    assert columns(calibration) == {name: values[:3] for name, values in expected.items()}
    assert columns(heldout) == {name: values[3:] for name, values in expected.items()}
    assert calibration.split == f"first half of rows{suffix}"
    assert capfd.readouterr().err == ""  # no progress bars


def test_words_that_pandas_reads_as_missing_stay_words(tmp_path: Path) -> None:
    rows = [{"text": word, "label": 1} for word in ("null", "NA", "None", "nan")]
    for suffix in (".csv", ".tsv"):
        write(tmp_path / f"rows{suffix}", rows)
        parts = read_parts(str(tmp_path / f"rows{suffix}"))
        assert [text for part in parts for text in part.columns["text"]] == [
            row["text"] for row in rows
        ]


def folder(path: Path, *splits: str, **hidden: int) -> str:
    path.mkdir()
    for split in splits:
        label = hidden.get(split)
        rows = [
            {"text": f"{split} {i}", "label": i % 2 if label is None else label} for i in range(4)
        ]
        write(path / f"{split}.jsonl", rows)
    return str(path)


@pytest.mark.parametrize(
    ("splits", "calibration", "heldout"),
    [
        (("train", "test"), "train", "test"),
        (("train", "validation", "test"), "train", "test"),
        (("train", "validation"), "train", "validation"),
        (("validation", "test"), "validation", "test"),
    ],
)
def test_splits_by_their_usual_names(
    tmp_path: Path, splits: tuple[str, ...], calibration: str, heldout: str
) -> None:
    parts = read_parts(folder(tmp_path / "data", *splits))
    for part, name in zip(parts, (calibration, heldout), strict=True):
        assert columns(part)["text"] == [f"{name} {i}" for i in range(4)]
        assert part.split == f"data {name}"


def test_one_split_is_cut_in_two(tmp_path: Path) -> None:
    calibration, heldout = read_parts(folder(tmp_path / "data", "test"))
    assert columns(calibration)["text"] == ["test 0", "test 1"]
    assert columns(heldout)["text"] == ["test 2", "test 3"]
    assert heldout.split == "second half of data test"


def test_an_empty_split_is_refused_where_it_is_needed(tmp_path: Path, monkeypatch: Any) -> None:
    full, empty = (Dataset.from_dict({"text": texts}) for texts in (["a", "b"], []))
    splits = DatasetDict({"train": full, "validation": empty, "test": full})
    monkeypatch.setattr("datasets.load_dataset", lambda **_: splits)
    calibration, heldout = read_parts("some/data")
    assert (calibration.split, heldout.split) == ("some/data train", "some/data test")
    with pytest.raises(InputError, match=r"data set some/data is empty \(validation\)"):
        read_parts("some/data", TaskSettings(heldout_split="validation"))


def test_a_split_with_hidden_labels_is_not_held_out(tmp_path: Path) -> None:
    """As in GLUE."""
    data = folder(tmp_path / "data", "train", "validation", "test", test=-1)
    assert [part.split for part in read_parts(data)] == ["data train", "data validation"]


@pytest.mark.parametrize(
    ("settings", "calibration", "heldout"),
    [
        ({"calibration_split": "validation"}, "validation 0", "test 0"),
        ({"heldout_split": "train"}, "validation 0", "train 0"),
        ({"calibration_split": "test"}, "test 0", "validation 0"),
        ({"calibration_split": "test", "heldout_split": "train"}, "test 0", "train 0"),
        ({"calibration_split": "test", "heldout_split": "test"}, "test 0", "test 2"),
        ({"stream_rows": 2}, "train 0", "test 0"),
    ],
)
def test_splits_the_user_names(
    tmp_path: Path, settings: dict[str, Any], calibration: str, heldout: str
) -> None:
    parts = read_parts(
        folder(tmp_path / "data", "train", "validation", "test"), TaskSettings(**settings)
    )
    assert [columns(part)["text"][0] for part in parts] == [calibration, heldout]
    if "stream_rows" in settings:
        assert all(len(part) == 2 for part in parts)


def test_a_hub_data_set_with_its_class_names(tmp_path: Path, monkeypatch: Any) -> None:
    """The arguments of load_dataset, and the parts made of its result."""
    asked = []
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = {"sentence": ["bad", "good"], "label": [0, 1]}

    def load_dataset(path: str, name: str | None, streaming: bool) -> DatasetDict:
        asked.append((path, name, streaming))
        split = Dataset.from_dict(rows, features=features)
        return DatasetDict({"train": split, "test": split})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    calibration, _ = read_parts("stanfordnlp/sst2")
    assert calibration.label_names == {"label": ["neg", "pos"]}
    assert calibration.split == "stanfordnlp/sst2 train"
    read_parts("Salesforce/wikitext:wikitext-2-raw-v1")
    read_parts("abisee/cnn_dailymail:3.0.0")
    assert asked == [
        ("stanfordnlp/sst2", None, False),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", False),
        ("abisee/cnn_dailymail", "3.0.0", False),
    ]


def test_a_folder_of_texts_is_documents_by_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split}\n\n two lines \n")
    calibration, heldout = read_parts(str(tmp_path))
    assert columns(calibration) == {"text": ["train\n\n two lines \n"]}
    assert columns(heldout) == {"text": ["test\n\n two lines \n"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "does not exist: give a file"),
        ("empty.txt", b" \n", "is empty"),
        ("nothing.txt", b"", "empty"),
        ("empty.csv", b"text,label\n", "empty"),
        ("empty.jsonl", b"", "empty"),
        ("latin.txt", b"caf\xe9", "is not UTF-8"),
        ("latin.csv", b"text\ncaf\xe9\n", "is not UTF-8"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', "is not UTF-8"),
        ("cut.txt", "café".encode()[:-1], "is not UTF-8"),
        ("broken.jsonl", b'{"text": \n', "cannot load the data set"),
        ("broken.parquet", b"PAR0", "cannot load the data set"),
        ("one.csv", b"text,label\nyes,1\n", "has one row: give at least 2"),
        ("table.xlsx", b"x", "is a .xlsx file: give one of .csv, .json, .jsonl, .parquet, .tsv"),
    ],
)
def test_bad_files(
    tmp_path: Path, name: str, content: bytes | None, message: str, capfd: Any
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_parts(str(tmp_path / name))
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""  # it is reported once


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no data file: give one with files of one of .csv"):
        read_parts(str(tmp_path))
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"files of several types \(.csv, .txt\)"):
        read_parts(str(tmp_path))


def test_bad_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data set 'builtin:pydocs': did you mean"):
        read_parts("builtin:pydocs")
    with pytest.raises(InputError, match="cannot load the data set no/such"):
        read_parts("no/such")
    for missing in ("./no/such", "~/no-such-folder", "/no/such", "missing.csv"):
        with pytest.raises(InputError, match="does not exist: give a file"):
            read_parts(missing)
    data = folder(tmp_path / "data", "train", "test")
    with pytest.raises(InputError, match="unknown heldout split 'tests': did you mean 'test'"):
        read_parts(data, TaskSettings(heldout_split="tests"))


@pytest.mark.parametrize("name", ["d[ab].txt", "*.txt", "a::b.txt", "only[x].txt", "http:a.txt"])
def test_names_are_not_patterns(tmp_path: Path, name: str) -> None:
    for other in ("da.txt", "b.txt"):
        (tmp_path / other).write_text("another\n\ntext")
    (tmp_path / name).write_text("one\n\ntwo")
    texts = [columns(part)["text"] for part in read_parts(str(tmp_path / name))]
    assert texts == [["one\n"], ["two"]]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\n\ntwo")
    before = path.stat()
    read_parts(str(path))
    path.write_text("ONE\n\nTWO")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for data in (path, tmp_path):
        assert "ONE" in "".join(text for p in read_parts(str(data)) for text in p.columns["text"])


def test_only_files_inside_the_folder_are_read(tmp_path: Path) -> None:
    """Neither files that its README.md names nor hidden ones."""
    (tmp_path / "diary.jsonl").write_text('{"text": "secret", "label": 0}\n')
    data = Path(folder(tmp_path / "data", "train", "test"))
    (data / "README.md").write_text("---\nconfigs:\n- data_files: ../diary.jsonl\n---\n")
    (data / "._train.jsonl").write_bytes(b"\x00\x05\x16\x07\xb0\xff")
    assert columns(read_parts(str(data))[0])["text"] == [f"train {i}" for i in range(4)]
    (data / "valid.jsonl").symlink_to(tmp_path / "diary.jsonl")
    with pytest.raises(InputError, match=r"holds valid\.jsonl, a link to a file outside of it"):
        read_parts(str(data))
    (data / "valid.jsonl").unlink()
    os.mkfifo(data / "valid.jsonl")
    with pytest.raises(InputError, match=r"holds valid\.jsonl, which is not a file"):
        read_parts(str(data))
    with pytest.raises(InputError, match="is neither a file nor a folder"):
        read_parts(str(data / "valid.jsonl"))


def test_a_folder_of_several_data_sets(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder(tmp_path / name, "train", "test")
    with pytest.raises(InputError, match=r"several data sets \(a, b\): give one, such as .*:a"):
        read_parts(str(tmp_path))
    part, _ = read_parts(f"{tmp_path}:b")
    assert part.split == "b train" and len(part) == 4
    with pytest.raises(InputError, match="unknown data set in the folder .* 'c': known are a, b"):
        read_parts(f"{tmp_path}:c")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test"), "train test"),
        (("train/0", "train/1", "dev/0"), "train validation"),
        (("my_train.v2", "my_eval"), "train test"),
        (("ann/0", "bob/1"), "train"),
        (("data/train-00000-of-00001", "data/validation_m-00000-of-00001"), "train validation_m"),
    ],
)
def test_splits_by_the_names_of_files_and_folders(
    tmp_path: Path, names: tuple[str, ...], splits: str
) -> None:
    for name in names:
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'{{"text": "{name}"}}\n')
    found = local_tables(tmp_path)
    assert sorted(found) == sorted(splits.split())
    assert sorted(t for table in found.values() for t in table.columns["text"]) == sorted(names)


def test_parquet_keeps_class_names_and_uses_no_network(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    rows = {"text": ["a", "b"], "label": [0, 1]}
    path = str(tmp_path / "rows.parquet")
    Dataset.from_dict(rows, features=features).to_parquet(path)
    assert read_parts(path)[0].label_names == {"label": ["x", "y"]}
    features = Features({**features, "image": Image()})
    images = [{"path": "https://example.org/a.png", "bytes": None}] * 2
    # As it is: to_parquet() would fetch the images.
    table = pyarrow.Table.from_pydict({**rows, "image": images}, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, path)
    assert list(read_parts(path)[0].columns) == ["text", "label"]


def test_a_wide_table(tmp_path: Path) -> None:
    path, names = tmp_path / "wide.csv", ",".join(f"c{i}" for i in range(20_000))
    path.write_text(f"text,{names}\na{',1' * 20_000}\nb{',1' * 20_000}\n")
    start = time.monotonic()
    assert columns(read_parts(str(path))[1])["text"] == ["b"]
    assert time.monotonic() - start < 60


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name '.*caf\\udce9\.txt' is not UTF-8"):
        read_parts(f"{tmp_path}/caf\udce9.txt")


def test_more_fields_than_names(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nx,a text,1\ny,another,0\n")
    with pytest.raises(InputError, match="its rows have more fields than its header"):
        read_parts(str(tmp_path / "rows.csv"))
