"""The model card of a pruned model: its origin, what was removed, and what that cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sos_deap.errors import one_line
from sos_deap.report.formats import measurement

_LOADING = {
    "sliced": """The number of heads differs between layers, which the stock classes do not support:

```python
from transformers import {auto}
model = {auto}.from_pretrained(folder, trust_remote_code=True)  # runs modeling_pruned.py

import sos_deap
model = sos_deap.load(folder)  # runs no code from the folder
```
""",
    "uniform": """All layers have the same number of heads, so this is a stock model:

```python
from transformers import {auto}
model = {auto}.from_pretrained(folder)
```
""",
    "zeroed": """The output weights of the removed heads are zero: the model has the size and speed
of the original, and any loader reads it.

```python
from transformers import {auto}
model = {auto}.from_pretrained(folder)
```
""",
}


def model_card(
    *,
    base_model: str,
    layout: str,
    auto: str,
    heads_per_layer: Sequence[int],
    kept: Sequence[Sequence[int]],
    channels_per_layer: Sequence[int] = (),
    kept_channels: Sequence[int] = (),
    facts: Mapping[str, Any],
    metrics: Sequence[tuple[str, float, float]] = (),
) -> str:
    """Return the text of a pruned model's ``README.md``.

    :param base_model: the original model: a Hub name, a folder or a built-in name.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param auto: name of the auto class that loads the model.
    :param heads_per_layer: number of query heads of each layer of the original.
    :param kept: indices of the query heads that each layer keeps.
    :param channels_per_layer: number of feed-forward channels of each layer of the original.
    :param kept_channels: number of channels that each layer keeps.
    :param facts: further lines by label: command, seed, data, versions.
    :param metrics: rows (name, dense value, pruned value).
    """
    removed = [
        [head for head in range(count) if head not in set(keep)]
        for count, keep in zip(heads_per_layer, kept, strict=True)
    ]
    total = sum(map(len, removed))
    share = f"{total} of the {sum(heads_per_layer)} attention heads"
    percent = f"{total / sum(heads_per_layer):.1%}"
    lines = [
        *_front_matter(base_model),
        f"# {_text(base_model)}, pruned",
        "",
        f"{share} of {_code(base_model)} ({percent}) were removed by sos_deap, without training.",
        "",
        _LOADING[layout].format(auto=auto),
        *_metric_lines(metrics),
        "",
        "| layer | heads | removed |",
        "|---|---|---|",
    ]
    for layer, (count, heads) in enumerate(zip(heads_per_layer, removed, strict=True)):
        lines += [f"| {layer} | {count - len(heads)} of {count} | {', '.join(map(str, heads))} |"]
    shown = (
        (name, (_code if name == "command" else _text)(value)) for name, value in facts.items()
    )
    lines += ["", *(f"- {name}: {value}" for name, value in shown), ""]
    return "\n".join(lines)


def _front_matter(base_model: str) -> Iterator[str]:
    """Yield the card's metadata in YAML."""
    yield from ("---", "library_name: transformers")
    # Only a Hub name: the Hub makes a link of it.
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", base_model, re.ASCII):
        yield f"base_model: {base_model}"
    yield from ("tags: [pruned, attention-head-pruning, sos_deap]", "---", "")


def _metric_lines(metrics: Sequence[tuple[str, float, float]]) -> Iterator[str]:
    """Yield the table of metrics, or a sentence if there are none."""
    if not metrics:
        yield "Its quality was not measured when it was pruned."
        return
    yield from ("| | dense | pruned |", "|---|---|---|")
    for name, dense, pruned in metrics:
        yield f"| {_text(name)} | {measurement(dense)} | {measurement(pruned)} |"


def _text(value: object) -> str:
    """Return a value as Markdown text, with characters of markup and HTML escaped."""
    return re.sub(r"([\\`*\[\]<>&|~])", r"\\\1", one_line(str(value)))


def _code(value: object) -> str:
    """Return a value as Markdown code, between more backticks than it contains in a row."""
    text = one_line(str(value))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"
