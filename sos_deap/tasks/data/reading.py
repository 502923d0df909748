"""Reading a data set as two disjoint parts: calibration, for the search, and held-out.

Data sets are on the Hub (read by the ``datasets`` library), local files or folders, or built in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.tasks.data.local import class_names, local_path, local_tables
from sos_deap.tasks.data.pydoc import pydoc_documents
from sos_deap.tasks.settings import TaskSettings


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    :param split: source of the data, for the report.
    :param columns: values by column name.
    :param label_names: class names by column name, for the columns that have any.
    :param separator: text between texts that are joined; ``None`` for the tokenizer's end-of-text
        token.
    """

    split: str
    columns: Mapping[str, Sequence[Any]]
    label_names: Mapping[str, Sequence[str]]
    separator: str | None = "\n\n"

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def is_empty(self) -> bool:
        """Whether the part has no row, or a single row of blank text."""
        first = [values[0] for values in self.columns.values()] if len(self) == 1 else []
        return not len(self) or all(isinstance(v, str) and not v.strip() for v in first or [None])


def read_parts(dataset: str, settings: TaskSettings | None = None) -> tuple[Part, Part]:
    """Read a data set.

    :param dataset: ``builtin:pydoc``; a file or folder of one of the types in
        :data:`sos_deap.tasks.data.local.FILES`, optionally with a sub-folder after a colon; or a
        Hub name, optionally with the configuration after a colon
        (``Salesforce/wikitext:wikitext-2-raw-v1``).
    :param settings: names of the splits, and the number of rows to stream.
    :returns: the calibration and the held-out part; the two halves if both are the same split.
    :raises InputError: for a data set or split that is missing, empty or damaged.
    """
    settings = settings or TaskSettings()
    try:
        dataset.encode()
    except UnicodeEncodeError as error:  # the report could not be written later
        raise InputError(f"the data set's name {dataset!r} is not UTF-8: rename it") from error
    if dataset.startswith("builtin:"):
        if dataset not in BUILTIN:
            raise unknown("data set", dataset, [*BUILTIN, SELF])
        return BUILTIN[dataset]()
    splits = _splits(dataset, settings)
    for part in ("calibration", "heldout"):
        given = getattr(settings, f"{part}_split")
        if given is not None and given not in splits:
            raise unknown(f"{part} split", given, splits)
    calibration, heldout = settings.calibration_split, settings.heldout_split
    heldout = heldout or _usual(splits, HELDOUT, avoid=calibration)
    calibration = calibration or _usual(splits, CALIBRATION, avoid=heldout)
    for name in {calibration, heldout}:
        if splits[name].is_empty:
            raise InputError(f"data set {dataset} is empty ({name}): give one with text")
    if heldout == calibration:
        return _halves(dataset, splits[calibration])
    return splits[calibration], splits[heldout]


def _pydoc() -> tuple[Part, Part]:
    calibration, heldout = (
        Part(
            f"builtin:pydoc {split}",
            {"text": [document.text for document in pydoc_documents(split)]},
            label_names={},
            separator=None,
        )
        for split in ("calibration", "test")
    )
    return calibration, heldout


#: Built-in data sets by name.
BUILTIN: dict[str, Callable[[], tuple[Part, Part]]] = {"builtin:pydoc": _pydoc}

#: Name of the data set that the model itself generates (``self_text.py``).
SELF = "builtin:self"

#: Usual names of splits, the best first. Both parts use the same split only if it is the only one.
CALIBRATION = ("train", "training", "validation", "valid", "dev")
HELDOUT = ("test", "validation", "validation_matched", "valid", "dev")


def _usual(splits: Mapping[str, Part], names: Sequence[str], avoid: str | None) -> str:
    """Return the first split of a usual name.

    :param names: usual names, the best first.
    :param avoid: split of the other part, taken only if no other is found.
    """
    found = (name for name in names if name in splits and name != avoid)
    # Some benchmarks hide the labels of their test split: all are -1.
    return next((n for n in found if not _labels_hidden(splits[n])), avoid or next(iter(splits)))


def _labels_hidden(part: Part) -> bool:
    for name in ("label", "labels"):
        first = list(part.columns.get(name, ())[:100])
        if first and all(value == -1 for value in first):
            return True
    return False


def _halves(dataset: str, part: Part) -> tuple[Part, Part]:
    columns = {name: list(values) for name, values in part.columns.items()}
    name = part.split
    if len(part) == 1 and list(columns) == ["text"]:
        first, second = _cut(columns["text"][0])
        halves = [{"text": [first]}, {"text": [second]}]
    elif len(part) > 1:
        half = len(part) // 2
        cuts = slice(half), slice(half, None)
        halves = [{n: values[cut] for n, values in columns.items()} for cut in cuts]
    else:
        raise InputError(f"data set {dataset} has one row: give at least 2, one for each part")
    calibration, heldout = (
        Part(f"{which} half of {name}", rows, part.label_names, part.separator)
        for which, rows in zip(("first", "second"), halves, strict=True)
    )
    return calibration, heldout


def _cut(text: str) -> tuple[str, str]:
    """Return two halves of a text, cut between paragraphs if possible, else between characters."""
    middle = len(text) // 2
    gap = next((i for mark in ("\n\n", "\n") if (i := text.find(mark, middle)) >= 0), middle)
    return text[:gap], text[gap:].lstrip("\n")


def _splits(dataset: str, settings: TaskSettings) -> dict[str, Part]:
    """Return the parts of a data set by split."""
    path = local_path(dataset)
    if path is None:
        return {
            name: _remote_part(f"{dataset} {name}", rows)
            for name, rows in _loaded(dataset, settings.stream_rows).items()
        }
    found = {}
    for name, (kind, columns, names) in local_tables(path, settings.stream_rows).items():
        # A single file has no split: the report shows its name.
        split = path.name if path.is_file() else f"{path.absolute().name} {name}"
        # Text files are joined as they are, rows with a blank line between them.
        found[name] = Part(split, columns, names, "" if kind == ".txt" else "\n\n")
    return found


def _remote_part(split: str, rows: Any) -> Part:
    columns = {name: rows[name] for name in rows.column_names}
    return Part(split, columns, class_names(rows.features))


def _loaded(dataset: str, stream_rows: int | None) -> dict[str, Any]:
    """Load the splits of a data set on the Hub, or the first ``stream_rows`` rows of each."""
    from datasets import Dataset, load_dataset  # takes half a second; not for builtin:pydoc

    name, _, configuration = dataset.partition(":")
    try:
        with _silent():
            splits = load_dataset(
                path=name, name=configuration or None, streaming=stream_rows is not None
            )
            if stream_rows is None:
                return dict(splits)
            return {
                name: Dataset.from_list(list(rows.take(stream_rows)), features=rows.features)
                for name, rows in splits.items()
            }
    except Exception as error:  # of datasets, of the Hub client or of a file reader
        why = first_line(error.__cause__ or error)
        raise InputError(f"cannot load the data set {dataset}: {why}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Disable the progress bars and error logs of ``datasets``: errors are reported once."""
    import datasets
    from datasets.utils import logging

    verbosity, bars = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
