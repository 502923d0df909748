"""One sentence on a run: what its winner gained, and what it lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sos_deap.report.formats import measurement, percent
from sos_deap.report.parts import parts_of, removal

#: Divergences from the dense model; the sentence adds the perplexity, which is easier to judge.
_DIVERGENCES = ("kl", "distillation")


def headline(
    result: Mapping[str, Any], measured: Sequence[Mapping[str, Any]] = (), arrow: str = "→"
) -> str:
    """Return what was gained and what was lost as one sentence.

    :param result: the content of a ``result.json``.
    :param measured: the content of a ``measured.json``; the first row counts.
    :param arrow: text between a value before and after.
    :returns: such as "27.0 % fewer parameters, prefill 1.29 times as fast, perplexity 23.4 → 24.6
        on text that the search has not seen".
    """
    dense, best, search = result["dense"], result["best"], result["search"]
    if all(best["chromosome"]):  # two timings of one model differ by chance
        gained = ["nothing was removed, since no smaller sub-model had a better fitness"]
        gained += filter(None, [_promise(search)])
    else:
        gained = [_size(result), *filter(None, [_speed(search, measured)])]
    quality = _quality(dense["heldout"], best["heldout"], arrow)
    return f"{', '.join([*gained, *quality])} {_where(result['data'])}"


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
    models = measured[0]["models"] if measured else {}
    before, after = (models.get(name, {}).get("prefill_seconds") for name in ("dense", "pruned"))
    if before is None or after is None:
        return promise
    speed = f"prefill {measurement(before / after)} times as fast"
    return f"{speed} ({promise})" if promise else speed


def _promise(search: Mapping[str, Any]) -> str:
    """Return the speed-up that the search was to reach and the one reached, as far as known."""
    known = [
        f"{word} {measurement(search[f'{word}_speedup'])}"
        for word in ("promised", "measured")
        if search.get(f"{word}_speedup") is not None
    ]
    return f"speed-up {', '.join(known)}" if known else ""


def _quality(
    dense: Mapping[str, float | None], best: Mapping[str, float | None], arrow: str
) -> list[str]:
    """Return the main metric before and after, and the perplexity if that is a divergence."""
    main, *others = dense
    names = [main, *(name for name in others if main in _DIVERGENCES and name == "perplexity")]
    return [f"{name} {_change(dense[name], best[name], arrow)}" for name in names]


def _change(before: float | None, after: float | None, arrow: str) -> str:
    """Return a value before and after, or one value if they are the same."""
    values = ["not finite" if value is None else measurement(value) for value in (before, after)]
    return values[0] if before == after else f" {arrow} ".join(values)


def _where(data: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the held-out metrics were computed on."""
    heldout = data["held-out"]
    # A metric of the user's may be of anything, and without rows of data it has one part only.
    noun = "data" if "code_hash" in heldout else "text"
    if heldout == data["calibration"]:
        return f"on the {noun} of the search"
    return f"on {noun} that the search has not seen"
