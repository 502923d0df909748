"""The model card of a pruned model: its origin, what was removed, and the loss of quality."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sos_deap.errors import one_line
from sos_deap.report.parts import Part, columns, removal, unit

_LOADING = {
    "sliced": """The layers differ in size, which the stock classes do not support:

```python
from transformers import {auto}
model = {auto}.from_pretrained(folder, trust_remote_code=True)  # runs modeling_pruned.py

import sos_deap
model = sos_deap.load(folder)  # runs no code from the folder
```
""",
    "uniform": """All layers have the same size, so this is a stock model:

```python
from transformers import {auto}
model = {auto}.from_pretrained(folder)
```
""",
    "zeroed": """The output weights of what was removed are zero: the model has the size and speed
of the original, and any loader reads it.

```python
from transformers import {auto}
model = {auto}.from_pretrained(folder)
```
""",
}


def model_card(
    *,
    title: str,
    metadata: str,
    layout: str,
    auto: str,
    parts: Sequence[Part],
    facts: Mapping[str, Any],
    headline: str = "",
    rows: Sequence[Sequence[str]] = (),
) -> str:
    """Return the text of a pruned model's ``README.md``.

    :param title: name of the dense model.
    :param metadata: the metadata in YAML (:func:`sos_deap.report.metadata.metadata`).
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param auto: name of the auto class that loads the model.
    :param parts: the genes of the pruned model.
    :param facts: further lines by label: command, seed, data, versions.
    :param headline: what was gained and lost (:func:`sos_deap.report.headline.headline`); default:
        it was not measured.
    :param rows: rows of text: label, dense value, pruned value, change.
    """
    lines = [
        *("---", metadata, "---", ""),
        f"# {_text(title)}, pruned",
        "",
        *([f"{_text(headline[0].upper() + headline[1:])}.", ""] if headline else []),
        f"{removal(parts)} of {_code(title)} were removed by sos_deap, without training.",
        "",
        _LOADING[layout].format(auto=auto),
        *_measured(rows),
        "",
        *_by_layer(parts),
    ]
    shown = (
        (name, (_code if name == "command" else _text)(value)) for name, value in facts.items()
    )
    lines += ["", *(f"- {name}: {value}" for name, value in shown), ""]
    return "\n".join(lines)


def _measured(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the table of sizes and metrics, or a sentence if there is none."""
    if not rows:
        yield "Its quality was not measured when it was pruned."
        return
    yield from ("| | dense | pruned | change |", "|---|---|---|---|")
    for row in rows:
        yield _row(map(_text, row))


def _by_layer(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the table of what each layer keeps, with the indices of what it lost."""
    found = list(columns(parts))
    yield _row(["layer", *(cell for kind, _ in found for cell in (unit(kind), "removed"))])
    yield "|---" * (1 + 2 * len(found)) + "|"
    for layer in sorted({part.layer for part in parts}):
        cells = [str(layer)]
        for _, column in found:
            cells += _kept(column[layer]) if layer in column else ["", ""]
        yield _row(cells)


def _kept(part: Part) -> list[str]:
    """Return how many genes of a part are kept, and the indices of the others."""
    total = len(part.genes)
    return [f"{total - len(part.removed)} of {total}", ", ".join(map(str, part.removed))]


def _row(cells: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _text(value: object) -> str:
    """Return a value as Markdown text, with characters of markup and HTML escaped."""
    return re.sub(r"([\\`*\[\]<>&|~])", r"\\\1", one_line(str(value)))


def _code(value: object) -> str:
    """Return a value as Markdown code, between more backticks than it contains in a row."""
    text = one_line(str(value))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"
