"""One sentence on a run: what its winner gained, and what it lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sos_deap.report.formats import measurement, percent, signed
from sos_deap.report.parts import parts_of, removal
from sos_deap.report.timings import forward_pass, overlap
from sos_deap.tasks.task import judged_by


def headline(
    result: Mapping[str, Any], measured: Sequence[Mapping[str, Any]] = (), arrow: str = "→"
) -> str:
    """Return what was gained and what was lost as one sentence.

    :param result: the content of a ``result.json``.
    :param measured: the content of a ``measured.json``; the first row counts.
    :param arrow: text between a value before and after.
    :returns: such as "27.0 % fewer parameters, prefill 1.29 times as fast, perplexity 23.4 → 24.6
        (+5.13 %, 95 % interval +4.60 to +5.71 %) on text that the search has not seen".
    """
    best, search = result["best"], result["search"]
    if all(best["chromosome"]):  # two timings of one model differ by chance
        why = "no smaller sub-model had a better fitness"
        if "bound" in result:
            why = "every smaller sub-model exceeded the bound on the loss"
        gained = [f"nothing was removed, since {why}"]
        gained += filter(None, [_promise(search)])
    else:
        gained = [_size(result), *filter(None, [_speed(search, measured)])]
    return f"{', '.join([*gained, _quality(result, arrow)])} {_where(result['data'])}"


def _size(result: Mapping[str, Any]) -> str:
    """Return the share of the parameters that were removed, or what was if no parameter was."""
    dense, best = result["dense"], result["best"]
    if best["parameters"] < dense["parameters"]:
        return f"{percent(1 - best['parameters'] / dense['parameters'])} fewer parameters"
    removed = removal(parts_of(result["search"], best["chromosome"]))
    return f"{removed} set to zero, as many parameters as before"


def _speed(search: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> str:
    """Return the measured speed of a prefill, and the promised speed-up, as far as known."""
    promise = _promise(search)
    speed = _measured_speed(measured[0]) if measured else ""
    if not speed:
        return promise
    return f"{speed} ({promise})" if promise else speed


def _measured_speed(row: Mapping[str, Any]) -> str:
    """Return how many times as fast the pruned model is, or that timing noise hides it."""
    dense, pruned = (row["models"].get(name, {}) for name in ("dense", "pruned"))
    before, after = (figures.get("prefill_seconds") for figures in (dense, pruned))
    if before is None or after is None:
        return ""
    what = forward_pass(row)
    if overlap(dense.get("prefill_quartiles"), pruned.get("prefill_quartiles")):
        return f"{what} as fast within timing noise"
    slower = "slower, " if after > before else ""
    return f"{what} {slower}{measurement(before / after)} times as fast"


def _promise(search: Mapping[str, Any]) -> str:
    """Return the speed-up that the search was to reach and the one reached, as far as known."""
    known = [
        f"{word} {measurement(search[f'{word}_speedup'])}"
        for word in ("promised", "measured")
        if search.get(f"{word}_speedup") is not None
    ]
    return f"speed-up {', '.join(known)}" if known else ""


def _quality(result: Mapping[str, Any], arrow: str) -> str:
    """Return the metric before and after, and its change with a confidence interval."""
    dense, best = result["dense"]["heldout"], result["best"]["heldout"]
    name = judged_by(dense)
    before, after = dense[name], best[name]
    change = result.get("change", {}).get("heldout", {}).get(name)
    points = change is not None and change["kind"] == "points"
    values = [_value(value, points) for value in (before, after)]
    if before == after:
        return f"{name} {values[0]}{' %' if points else ''}"
    text = f"{name} {f' {arrow} '.join(values)}{' %' if points else ''}"
    return f"{text} ({_changed(change, _answers(result, name))})" if change else text


def _value(value: float | None, points: bool) -> str:
    if value is None:
        return "not finite"
    return measurement(100 * value if points else value)


def _changed(change: Mapping[str, Any], answers: str) -> str:
    """Return a change, and whether its confidence interval includes no change."""
    unit = {"points": " points", "percent": " %", "difference": ""}[change["kind"]]
    text = f"{signed(change['value'])}{unit}{answers}"
    low, high = change["low"], change["high"]
    if low is None:
        return text
    noise = ": within noise" if low <= 0 <= high else ""
    return f"{text}, 95 % interval {signed(low)} to {signed(high)}{unit}{noise}"


def _answers(result: Mapping[str, Any], metric: str) -> str:
    """Return by how many answers the accuracy changed; empty for other metrics."""
    examples = result["data"]["held-out"].get("examples")
    if metric not in ("accuracy", "accuracy_norm") or examples is None:
        return ""
    changed = abs(result["best"]["heldout"][metric] - result["dense"]["heldout"][metric])
    return f", {round(changed * examples):,} of {examples:,} answers"


def _where(data: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the held-out metrics were computed on."""
    heldout = data["held-out"]
    # A user's metric may read any data, and without rows of data it has one part only.
    noun = "data" if "code_hash" in heldout else "text"
    if heldout == data["calibration"]:
        return f"on the {noun} of the search"
    return f"on {noun} that the search has not seen"
