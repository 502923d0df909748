"""The model card of a pruned model: what it was, what went, and what that cost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sos_deap.errors import one_line

_LOADING = {
    "sliced": """Every layer has as many heads as it kept, which the stock classes do not know:

```python
from transformers import {auto}
model = {auto}.from_pretrained(folder, trust_remote_code=True)  # runs modeling_pruned.py

import sos_deap
model = sos_deap.load(folder)  # runs no code from the folder
```
""",
    "uniform": """Every layer kept as many heads, so it is a stock model:

```python
from transformers import {auto}
model = {auto}.from_pretrained(folder)
```
""",
    "zeroed": """The removed heads are still there, with zeros for output weights: it has the size
and speed of the original, and any loader reads it.

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
    facts: Mapping[str, Any],
    metrics: Sequence[tuple[str, float, float]] = (),
) -> str:
    """The text of a pruned model's ``README.md``.

    :param base_model: what was pruned: a Hub name, a folder or a built-in name.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param auto: the auto class that loads it.
    :param heads_per_layer: query heads that each layer had.
    :param kept: the numbers of the query heads each layer keeps.
    :param facts: further lines: command, seed, data, versions, as plain text.
    :param metrics: name, value of the dense and of the pruned model.
    """
    removed = [
        [head for head in range(count) if head not in set(keep)]
        for count, keep in zip(heads_per_layer, kept, strict=True)
    ]
    gone, total = sum(map(len, removed)), sum(heads_per_layer)
    # Only a Hub name may stand in the metadata: it becomes a link there.
    hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", base_model, re.ASCII)
    lines = [
        "---",
        "library_name: transformers",
        *([f"base_model: {base_model}"] if hub else []),
        "tags: [pruned, attention-head-pruning, sos_deap]",
        "---",
        "",
        f"# {_text(base_model)}, pruned",
        "",
        f"{gone} of the {total} attention heads of {_code(base_model)} ({gone / total:.1%}) were "
        "removed by sos_deap, without training.",
        "",
        _LOADING[layout].format(auto=auto),
    ]
    if metrics:
        lines += ["| | dense | pruned |", "|---|---|---|"]
        lines += [
            f"| {_text(name)} | {dense:.4g} | {pruned:.4g} |" for name, dense, pruned in metrics
        ]
    else:
        lines += ["Its quality was not measured when it was pruned."]
    lines += ["", "| layer | heads | removed |", "|---|---|---|"]
    for layer, (count, lost) in enumerate(zip(heads_per_layer, removed, strict=True)):
        lines += [f"| {layer} | {count - len(lost)} of {count} | {', '.join(map(str, lost))} |"]
    shown = (
        (name, (_code if name == "command" else _text)(value)) for name, value in facts.items()
    )
    lines += ["", *(f"- {name}: {value}" for name, value in shown), ""]
    return "\n".join(lines)


def _text(value: object) -> str:
    """A name or a value as text of Markdown, in which it is neither markup nor HTML."""
    return re.sub(r"([\\`*\[\]<>&|~])", r"\\\1", one_line(str(value)))


def _code(value: object) -> str:
    """The same as code, between more backticks than there are in it."""
    text = one_line(str(value))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"
