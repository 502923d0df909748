"""How numbers and the end of a search are printed; JSON files keep full precision.

Measured numbers have three significant digits, percentages of them at most two decimals. Counts are
whole, with separators of thousands.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

#: Sentences on how a search ended, by the value of ``stopped_by`` (see
#: :class:`sos_deap.search.limits.Limits`); the names in braces are counts in ``result.json``.
ENDS = {
    "finished": "finished: no proposals left (generation {generations:,})",
    "generations": "finished: {generations:,} generations",
    "evaluations": "stopped: the limit on evaluations was reached ({spent}, generation "
    "{generations:,})",
    "tokens": "stopped: the limit on tokens was reached ({tokens:,}, generation {generations:,})",
    "seconds": "stopped: the time limit was reached (generation {generations:,})",
    "threshold": "stopped: the best fitness reached the threshold (generation {generations:,})",
    "stagnation": "stopped: the best fitness no longer improved (generation {generations:,})",
    "sparsity": "stopped: the best sub-model reached the target sparsity (generation "
    "{generations:,})",
    "max_sparsity": "stopped: a sub-model reached the maximum sparsity (generation "
    "{generations:,}; Algorithm 1, line 10)",
}


def search_end(search: Mapping[str, Any]) -> str:
    """Return a sentence on how a search ended.

    :param search: the ``search`` part of a ``result.json``.
    """
    name = search["stopped_by"]
    if name not in ENDS:  # of an earlier or later version
        return f"stopped: {name}"
    spent = search.get("evaluations_spent", search.get("evaluations", 0))
    return ENDS[name].format_map({**search, "spent": amount(spent)})


def amount(evaluations: float) -> str:
    """Return a number of evaluations, of which one on part of the examples counts as its share.

    >>> [amount(evaluations) for evaluations in (24, 23.96, 1010.04)]
    ['24', '24.0', '1,010']
    """
    whole = evaluations == int(evaluations) or evaluations >= 100
    return f"{round(evaluations):,}" if whole else f"{evaluations:.1f}"


def counted(number: int, noun: str) -> str:
    """Return a count with its noun, such as ``"1 cache hit"`` or ``"1,003 cache hits"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def measurement(value: float) -> str:
    """Return a measured number with three significant digits.

    >>> [measurement(value) for value in (9.28614, 0.0123456, 1234.5, 9.999)]
    ['9.29', '0.0123', '1,230', '10.0']

    Numbers below 0.0001, and of 13 digits or more, have an exponent.
    """
    if not value or not math.isfinite(value):
        return f"{value:g}"
    scientific = f"{value:.2e}"
    exponent = int(scientific.partition("e")[2])  # after rounding: 9.999 is 1.00e+01
    if not -4 <= exponent < 12:
        return scientific
    return f"{round(float(value), 2 - exponent):,.{max(0, 2 - exponent)}f}"


def duration(seconds: float) -> str:
    """Return a time in hours, minutes and seconds.

    >>> [duration(seconds) for seconds in (7.4, 83, 3600, 90061)]
    ['0:07', '1:23', '1:00:00', '25:01:01']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float) -> str:
    """Return a share in percent, with three significant digits and at most two decimals.

    >>> [percent(share) for share in (0.2698, 0.0123456, 0.00012, 0, 5.321)]
    ['27.0 %', '1.23 %', '0.01 %', '0 %', '532 %']
    """
    if not share:
        return "0 %"
    value = round(100 * share, 2) + 0.0  # not -0.0
    return f"{value:.2f} %" if abs(value) < 10 else f"{measurement(value)} %"


def change(before: float, after: float) -> str:
    """Return a change in percent, with its sign; the value before must not be 0.

    >>> change(144, 132), change(23.4081, 24.6279), change(12, 12)
    ('-8.33 %', '+5.21 %', '0 %')
    """
    return f"{signed(100 * (after / before - 1))} %"


def signed(value: float) -> str:
    """Return a number with its sign, three significant digits and at most two decimals.

    >>> signed(-0.918), signed(7.614), signed(0)
    ('-0.92', '+7.61', '0')
    """
    sign = "-" if value < 0 else "+" if value else ""
    return sign + percent(abs(value) / 100).removesuffix(" %")


def title_of(name: str) -> str:
    """Return a model's name for a title: of a folder its last component, not its path.

    :param name: Hub name or folder of a model, or a built-in name.
    """
    folder = Path(name).expanduser()
    return Path(os.path.abspath(folder)).name if folder.is_dir() else name


def arrow(stream: TextIO) -> str:
    """Return an arrow, or ``"->"`` if the encoding of a stream has no arrow."""
    return printable("→", "->", stream)


def plus_minus(stream: TextIO) -> str:
    """Return the sign of a standard error, or ``"+-"`` if the encoding of a stream lacks it."""
    return printable("±", "+-", stream)


def printable(text: str, plain: str, stream: TextIO) -> str:
    """Return a text, or another if the encoding of a stream does not have its characters.

    :param text: the text.
    :param plain: ASCII text for it.
    :param stream: the stream.
    """
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return plain
    return text


def format_value(value: object) -> str:
    """Return a count as a whole number, another number with three significant digits."""
    if isinstance(value, float):
        return measurement(value)
    count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if count else str(value)
