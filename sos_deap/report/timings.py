"""Tables of measured times and sizes, from the rows of :func:`sos_deap.models.measure.measure`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sos_deap.report.formats import format_value, percent


def forward_pass(row: Mapping[str, Any]) -> str:
    """Return the name of a forward pass: a prefill, if the model has a key/value cache."""
    first = next(iter(row["models"].values()))
    return "forward pass" if first.get("kv_bytes_per_token") == 0 else "prefill"


def overlap(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    """Whether two ranges between quartiles overlap; false if one is not known."""
    return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]


def measured_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows of :func:`sos_deap.models.measure.measure` as tables of text."""
    return "\n\n".join(map(_measured, rows))


def _measured(row: Mapping[str, Any]) -> str:
    shown = measured_cells(row)
    names = shown["names"]
    lines = [f"{shown['title']:33}" + "".join(f"{name:>14}" for name in names)]
    if len(names) > 1:
        lines[0] += f"{'saved':>10}{'bound':>8}"
    for label, *values, saved, bound in shown["rows"]:
        line = f"{label:33}" + "".join(f"{value:>14}" for value in values)
        lines.append((line + f"{saved:>10}{bound:>8}").rstrip())
    return "\n".join([*lines, *shown["notes"]])


def measured_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of one batch size and length, as text.

    :param row: a row of :func:`sos_deap.models.measure.measure`.
    :returns: ``title``; ``names`` of the models; ``rows``, each of a label, a value per model, the
        share that the second model saves ("noise" if the quartiles of both overlap), and the saving
        predicted from operations or bytes; ``notes``, lines on unusual savings.
    """
    names, models = list(row["models"]), list(row["models"].values())
    whole, rows = forward_pass(row), list[list[str]]()
    notes: list[str] = []
    for label, key, gain in (
        (f"{whole}, ms", "prefill", "prefill"),
        ("decoding, ms per token", "decode", "decode"),
    ):
        times = [model[f"{key}_seconds"] for model in models]
        if None in times:
            continue
        quartiles = [model.get(f"{key}_quartiles") for model in models]
        saved = bound = ""
        if len(models) == 2:
            share = row["gains"][names[1]][f"{gain}_bound"]
            bound = "" if share is None else percent(share)
            saved = "noise" if overlap(*quartiles) else percent(1 - times[1] / times[0])
            notes += _notes(label.partition(",")[0], quartiles, share)
        rows.append([label, *(format_value(1e3 * time) for time in times), saved, bound])
        if None not in quartiles:
            rows.append(["  quartiles", *map(_range, quartiles), "", ""])
    rows += _sizes(models, whole)
    title = f"{row['batch_size']} x {row['length']} tokens, medians of {row['rounds']}"
    return {"title": title, "names": names, "rows": rows, "notes": notes}


def _range(quartiles: Sequence[float]) -> str:
    """Return two times in milliseconds."""
    return " - ".join(format_value(1e3 * time) for time in quartiles)


def _notes(what: str, quartiles: Sequence[Any], bound: float | None) -> Iterator[str]:
    """Yield lines on a saving that is noise, or more than operations or bytes explain."""
    if None in quartiles:
        return
    dense, pruned = quartiles
    if overlap(dense, pruned):
        yield f"noise: the quartiles of the {what} of both models overlap"
    elif bound is not None and 1 - pruned[1] / dense[0] > bound:
        yield (
            f"{what} saves more than the bound: other causes contribute, such as caches, or "
            "matrix sizes that this machine computes at different speeds"
        )


def _sizes(models: Sequence[Mapping[str, Any]], whole: str) -> Iterator[list[str]]:
    """Yield the rows of what is counted rather than timed."""
    for label, key, scale, saves in (
        ("decoding, tokens per second", "decode_tokens_per_second", 1, False),
        (f"peak memory of a {whole}, MB", "peak_bytes", 1e-6, True),
        ("weights, MB", "weight_bytes", 1e-6, True),
        ("key/value cache, bytes per token", "kv_bytes_per_token", 1, True),
    ):
        values = [model[key] for model in models]
        if None in values or not values[0]:
            continue
        saved = percent(1 - values[1] / values[0]) if saves and len(values) == 2 else ""
        # A count, though stored as a quotient; all others are measurements.
        scaled = [round(v) if key == "kv_bytes_per_token" else v * scale for v in values]
        yield [label, *map(format_value, scaled), saved, ""]
