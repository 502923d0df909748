"""Local data sets: files and folders, read as columns.

``datasets.load_dataset`` is not used: it treats names as patterns, follows files named in a
folder's README.md, and caches copies by modification time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sos_deap.errors import InputError, first_line, unknown


class Table(NamedTuple):
    """The content of one or more files.

    :param suffix: suffix of the files.
    :param columns: values by column name.
    :param label_names: class names by column name.
    """

    suffix: str
    columns: Mapping[str, Sequence[Any]]
    label_names: Mapping[str, Sequence[str]]


def _text(path: Path, rows: int | None) -> Table:
    return Table(".txt", {"text": [path.read_text(encoding="utf-8-sig")]}, {})


def _csv(path: Path, rows: int | None) -> Table:
    # By default pandas reads the texts "null" and "NA" as missing values.
    return _pandas(path, rows, keep_default_na=False)


def _tsv(path: Path, rows: int | None) -> Table:
    # As in GLUE's files, quotation marks are not special (quoting=3, csv.QUOTE_NONE).
    return _pandas(path, rows, keep_default_na=False, sep="\t", quoting=3)


def _pandas(path: Path, rows: int | None, **options: Any) -> Table:
    import pandas

    with path.open(encoding="utf-8-sig", newline="") as file:
        frame = pandas.read_csv(file, nrows=rows, low_memory=False, **options)
    if not isinstance(frame.index, pandas.RangeIndex):
        raise ValueError("its rows have more fields than its header")
    return Table(path.suffix, {str(name): values.tolist() for name, values in frame.items()}, {})


def _json(path: Path, rows: int | None) -> Table:
    text = path.read_text(encoding="utf-8-sig")
    try:
        found = json.loads(text)
    except ValueError:  # JSON lines
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("expected an object per line, or a list of objects")
    names = {name: None for row in found for name in row}
    return Table(path.suffix, {name: [row.get(name) for row in found[:rows]] for name in names}, {})


def _parquet(path: Path, rows: int | None) -> Table:
    import pyarrow.parquet
    from datasets import Dataset
    from datasets.features.features import require_decoding

    with path.open("rb") as file:
        read = pyarrow.parquet.ParquetFile(file).read()
    found = Dataset(read if rows is None else read.slice(0, rows))
    # Images and sounds whose bytes are not in the file but in others or on the network.
    external = [
        name
        for name, feature in found.features.items()
        if require_decoding(feature) and not _is_embedded(found.data.column(name))
    ]
    found = found.remove_columns(external)
    columns = {name: found[name] for name in found.column_names}
    return Table(path.suffix, columns, class_names(found.features))


def _is_embedded(column: Any) -> bool:
    return all(isinstance(v, dict) and v.get("bytes") is not None for v in column.to_pylist())


def class_names(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Return the class names by column, for the label columns of a ``datasets`` table.

    :param features: features of the table by column.
    """
    found = {}
    for name, feature in features.items():
        names = getattr(feature, "names", None) or getattr(
            getattr(feature, "feature", None), "names", None
        )
        if names is not None:
            found[name] = names
    return found


#: Readers by suffix; each takes a path and the most rows to read (``None``: all).
FILES: dict[str, Callable[[Path, int | None], Table]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json,
    ".parquet": _parquet,
    ".tsv": _tsv,
    ".txt": _text,
}

#: Splits by the words that name them in the name of a file or folder.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def local_path(dataset: str) -> Path | None:
    """Return the file or folder of a data set, or ``None`` for a name on the Hub.

    :param dataset: ``path`` or ``folder:subfolder``.
    :raises InputError: if the file or folder does not exist.
    """
    path = Path(dataset).expanduser()
    if path.exists():
        return path
    head, colon, tail = dataset.rpartition(":")
    if colon and (folder := Path(head).expanduser()).is_dir():
        inside = [p.name for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name)]
        if tail not in inside:
            raise unknown(f"data set in the folder {head}", tail, sorted(inside))
        return folder / tail
    # A Hub name may have dots too: abisee/cnn_dailymail:3.0.0.
    if path.is_absolute() or dataset.startswith((".", "~")) or path.suffix.lower() in FILES:
        raise InputError(f"data set file {path} does not exist: give a file, or builtin:pydoc")
    return None


def local_tables(path: Path, rows: int | None = None) -> dict[str, Table]:
    """Return the tables of a file or folder by split.

    :param path: a file, or a folder of files of one type.
    :param rows: most rows to read of each split; ``None`` for all.
    :raises InputError: for files that are missing, empty or damaged, or links out of the folder.
    """
    if path.is_dir():
        files = _by_split(path, _files_in(path))
    elif path.is_file():
        if path.suffix.lower() not in FILES:
            raise InputError(
                f"data set file {path} is a {path.suffix} file: give one of "
                f"{', '.join(sorted(FILES))}"
            )
        files = {"train": [path]}
    else:
        raise InputError(f"data set {path} is neither a file nor a folder: give one of these")
    return {split: _joined([_read(file, rows) for file in files[split]], rows) for split in files}


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))  # such as ._train.csv and __MACOSX of macOS


def _files_in(folder: Path) -> list[Path]:
    """Return the data files of a folder and its sub-folders as relative paths.

    :raises InputError: if there are none, or of several types, or links out of the folder.
    """
    found, root = [], folder.resolve()
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.suffix.lower() not in FILES or any(map(_is_hidden, inner.parts)) or path.is_dir():
            continue
        if not path.is_file():
            raise InputError(
                f"data set folder {folder} holds {inner}, which is not a file: remove it"
            )
        if not path.resolve().is_relative_to(root):
            raise InputError(
                f"data set folder {folder} holds {inner}, a link to a file outside of it: copy the "
                "file into the folder"
            )
        found.append(inner)
    kinds = sorted({path.suffix.lower() for path in found})
    if len(kinds) != 1:
        has = f"files of several types ({', '.join(kinds)})" if kinds else "no data file"
        raise InputError(
            f"data set folder {folder} holds {has}: give one with files of one of "
            f"{', '.join(sorted(FILES))}"
        )
    return found


def _by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files by split; without any split in the names, all files are ``train``.

    :raises InputError: if several sub-folders have splits, so that each is a data set.
    """
    named = [(split, file) for file in files if (split := _split_of(file)) is not None]
    tops = {file.parts[0] for _, file in named if len(file.parts) > 1}
    several = sorted(top for top in tops if top != "data" and _split_of(Path(top)) is None)
    if len(several) > 1:
        raise InputError(
            f"data set folder {folder} holds several data sets ({', '.join(several)}): give one, "
            f"such as {folder}:{several[0]}"
        )
    found: dict[str, list[Path]] = {}
    for split, file in named or [("train", file) for file in files]:
        found.setdefault(split, []).append(folder / file)
    return found


def _split_of(path: Path) -> str | None:
    """Return the split that a relative path names in its folders or its file name, if any."""
    if sharded := re.fullmatch(r"(\w[\w.]*)-\d{5}-of-\d{5}.*", path.name):
        return sharded[1]
    parts = (*path.parts[:-1], path.name)
    words = [word for part in parts for word in re.split(r"[-._ 0-9]+", part)]
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _read(path: Path, rows: int | None) -> Table:
    try:
        if not path.stat().st_size:
            raise InputError(f"data set file {path} is empty: give one with text")
        return FILES[path.suffix.lower()](path, rows)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"data set file {path} is not UTF-8: {error.reason}") from error
    except OSError as error:
        why = error.strerror or first_line(error)
        raise InputError(f"data set file {path} cannot be read: {why}") from error
    except Exception as error:  # pandas, pyarrow and datasets raise many kinds
        raise InputError(f"cannot load the data set {path}: {first_line(error)}") from error


def _joined(tables: Sequence[Table], rows: int | None) -> Table:
    """Return the concatenated tables of a split; columns that a table lacks are ``None`` there."""
    if len(tables) == 1:
        return tables[0]
    names = {name: None for table in tables for name in table.columns}
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for table in tables:
        count = len(next(iter(table.columns.values()), ()))
        for name in names:
            columns[name] += list(table.columns.get(name, [None] * count))
    cut = {name: values[:rows] for name, values in columns.items()}
    return Table(
        tables[0].suffix, cut, {k: v for table in tables for k, v in table.label_names.items()}
    )
