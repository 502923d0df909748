"""Lines on a refit, for the closing lines of a run and its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sos_deap.report.formats import measurement

#: Least number of tokens per input of a projection that is advisable.
_TOKENS_PER_INPUT = 16


def refit_lines(result: Mapping[str, Any]) -> list[str]:
    """Return lines on a refit, with a warning where its result may not hold on other text.

    :param result: the content of a ``result.json``; without a refit there are no lines.
    """
    found = result.get("refit")
    if not found:
        return []
    tokens, inputs = found["tokens"], found["inputs"]
    lines = [
        f"refit: {found['how']}, {tokens:,} tokens, at most {inputs:,} inputs of a projection, "
        f"{measurement(found['seconds'])} s"
    ]
    if found["how"] != "bias" and tokens < _TOKENS_PER_INPUT * inputs:
        lines.append(
            f"warning: the refit had {tokens:,} tokens for {inputs:,} inputs of a projection: "
            f"at least {_TOKENS_PER_INPUT} per input are advisable, give more --refit_samples"
        )
    if "refit" not in result["data"]:
        lines.append(
            "warning: the search used all calibration examples, so the refit used these, too: "
            "give more data, or fewer --samples"
        )
    gains = {part: _gain(found, result["best"], part) for part in found["without"]}
    if gains.get("probe", 1.0) < 0 < gains["heldout"]:
        lines.append(
            "warning: the refit improved the metric on held-out text and worsened it on the probe "
            "data: refit on text that is more like the model's use, or leave the refit out"
        )
    return lines


def _gain(refit: Mapping[str, Any], best: Mapping[str, Any], part: str) -> float:
    """Return by how much a refit improved the main metric on a part of the data."""
    name, after = next(iter(best[part].items()))
    before = refit["without"][part][name]
    if before is None or after is None:
        return 0.0
    gain: float = after - before
    return gain if refit["greater_is_better"] else -gain
