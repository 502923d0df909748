"""A table of measured times, from which the share of time that a sub-model saves is interpolated.

The table is of one model, device and dtype. It is a JSON file in the run folder.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError
from sos_deap.files.json_file import read_json
from sos_deap.isotonic import falling
from sos_deap.models.genes import GeneMap
from sos_deap.models.sites import ATTENTION


@dataclass(frozen=True)
class Conditions:
    """What times are measured on: sub-models have other times on anything else.

    :param fingerprint: :func:`sos_deap.models.identity.fingerprint` of the dense model.
    :param device: name of the processor.
    :param dtype: dtype of the weights in memory, such as ``"float32"``.
    :param of: one of :data:`sos_deap.models.timing.TIMES_OF`.
    :param tokens: tokens in the prompt, of one sequence.
    """

    fingerprint: str
    device: str
    dtype: str
    of: str
    tokens: int

    def __str__(self) -> str:
        what = "a prefill" if self.of == "prefill" else "decoding after a prompt"
        return f"{what} of {self.tokens} tokens in {self.dtype} on {self.device}"


@dataclass(frozen=True)
class Point:
    """The time of the model whose sites of one geometry all keep the same number of units.

    :param units: number of units that each of these sites keeps.
    :param groups: number of key/value heads that these units use; for a feed-forward ``units``.
    :param time: time of the model, relative to that of the dense model.
    """

    units: int
    groups: int
    time: float


@dataclass(frozen=True)
class Row:
    """The times of all sites of one geometry.

    :param units: number of units of each site.
    :param groups: number of key/value heads of each site; for a feed-forward ``units``.
    :param sites: paths in the model of the sites' modules.
    :param points: the measured times, all with fewer units than the dense model.
    """

    units: int
    groups: int
    sites: tuple[str, ...]
    points: tuple[Point, ...]

    def saved(self, units: int, groups: int) -> float:
        """Return the share of the dense model's time that one site saves.

        :param units: number of units that it keeps.
        :param groups: number of key/value heads that these use.
        """
        return self._by_units(units) + self._by_groups(groups)

    @cached_property
    def _by_units(self) -> Curve:
        """What a site saves by query heads without removing a key/value head."""
        if self.groups == self.units:
            return Curve(((0, 0.0), (self.units, 0.0)))
        points = {p.units: self._each(p) for p in self.points if p.groups == self.groups}
        curve = monotone(points, self.units)
        # With fewer heads than groups some key/value head is removed: continue the line.
        slope = curve(self.groups) / (self.units - self.groups)
        return Curve(((0, slope * self.units), *curve.points))

    @cached_property
    def _by_groups(self) -> Curve:
        """What a site saves in addition by key/value heads."""
        fewer = {
            p.groups: self._each(p) - self._by_units(p.units)
            for p in self.points
            if p.groups < self.groups
        }
        return monotone(fewer, self.groups)

    def _each(self, point: Point) -> float:
        return (1 - point.time) / len(self.sites)


@dataclass(frozen=True)
class Curve:
    """A function that is linear between points.

    :param points: (x, y) in rising order of x, at least two.
    """

    points: tuple[tuple[int, float], ...]

    def __call__(self, x: int) -> float:
        """Return the value at x, which lies between the first and the last point."""
        right = min(
            max(1, bisect.bisect_left(self.points, x, key=lambda point: point[0])),
            len(self.points) - 1,
        )
        (x0, y0), (x1, y1) = self.points[right - 1], self.points[right]
        return y1 if x == x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def monotone(saved: Mapping[int, float], full: int) -> Curve:
    """Return the non-increasing curve that is nearest to measured savings, and 0 at the end.

    Without it an error of measurement could make a smaller sub-model slower than a larger one. The
    curve is the isotonic regression (pool adjacent violators), and at least 0.

    :param saved: from a number of kept units, smaller than ``full``, to what is saved.
    :param full: the number of units with which nothing is saved.
    """
    values = [max(0.0, value) for value in falling(saved[x] for x in sorted(saved))]
    return Curve((*zip(sorted(saved), values, strict=True), (full, 0.0)))


@dataclass(frozen=True)
class TimeTable:
    """Measured times of a model's sub-models.

    :func:`sos_deap.models.site_times.measured_table` makes it.

    :param conditions: what was measured on.
    :param seconds: time of the dense model.
    :param rows: a row for each geometry of sites.
    :param threads: number of threads of PyTorch.
    :param torch: version of PyTorch.
    """

    conditions: Conditions
    seconds: float
    rows: tuple[Row, ...]
    threads: int
    torch: str

    @cached_property
    def _row_of(self) -> dict[str, Row]:
        return {path: row for row in self.rows for path in row.sites}

    def saved(self, genes: GeneMap, site: int, keep: Sequence[int]) -> float:
        """Return the share of the dense model's time that a site saves.

        :param genes: gene map of the model.
        :param site: index of the site.
        :param keep: indices of the units that it keeps.
        """
        it = genes.sites[site]
        if len(keep) == it.units:
            return 0.0
        groups = len(it.group_counts(keep)) if it.kind == ATTENTION else len(keep)
        return self._row_of[it.module].saved(len(keep), groups)

    def check(self, genes: GeneMap, conditions: Conditions, source: str) -> None:
        """Raise :class:`InputError` if the table was measured on anything else than a run's model.

        :param genes: gene map of the run; the table must have all sites that it removes units of.
        :param conditions: those of the run.
        :param source: name of the table's file.
        """
        advice = "give that, or leave --time_table out to measure"
        names = {"of": "time_of", "tokens": "time_tokens", "fingerprint": "model"}
        for field in reversed(fields(Conditions)):
            table, run = getattr(self.conditions, field.name), getattr(conditions, field.name)
            if table != run:
                name = names.get(field.name, field.name)
                raise InputError(
                    f"time table {source} is for the {name} {table}, the run has {run}: {advice}"
                )
        for site, own in zip(genes.sites, genes.site_genes, strict=True):
            row = self._row_of.get(site.module)
            if own and (row is None or (row.units, row.groups) != (site.units, site.groups)):
                raise InputError(
                    f"time table {source} has no times of {site.module}, whose units the genes "
                    f"{genes.genes} stand for: leave --time_table out to measure"
                )

    def content(self) -> dict[str, Any]:
        """Return the table as plain values for a JSON file."""
        return asdict(self)


def read_time_table(path: Path) -> TimeTable:
    """Read a time table from a JSON file.

    :raises InputError: if the file is missing, unreadable or holds no time table.
    """
    content = read_json(path, "time table")
    try:
        return table_of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} holds no time table: give the time_table.json of a run with the sparsity_of "
            "time"
        ) from error


def table_of(content: Mapping[str, Any]) -> TimeTable:
    """Return a time table from the value of :meth:`TimeTable.content`.

    :raises KeyError, TypeError, ValueError: if the content is not that of a table.
    """
    conditions = Conditions(**content["conditions"])
    _check_types(conditions)
    rows = tuple(_row(row) for row in content["rows"])
    seconds, threads, version = content["seconds"], content["threads"], content["torch"]
    if not (_is_number(seconds) and seconds > 0) or not isinstance(version, str):
        raise ValueError("no seconds or no version")
    return TimeTable(conditions, seconds, rows, int(threads), version)


def _row(content: Mapping[str, Any]) -> Row:
    points = tuple(Point(**point) for point in content["points"])
    row = Row(content["units"], content["groups"], tuple(map(str, content["sites"])), points)
    counts = [row.units, row.groups, *(n for p in points for n in (p.units, p.groups))]
    if not row.sites or any(type(count) is not int for count in counts):
        raise ValueError("no sites, or a count that is no whole number")
    fit = all(
        0 <= p.units < row.units and 0 <= p.groups <= row.groups and _is_number(p.time)
        for p in points
    )
    ends = {(p.units, p.groups) for p in points} >= {(0, 0)}
    inner = row.groups == row.units or any(p.groups == row.groups == p.units for p in points)
    if not (fit and ends and inner):
        raise ValueError("the points do not span the sizes of a site")
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_types(conditions: Conditions) -> None:
    texts = [getattr(conditions, name) for name in ("fingerprint", "device", "dtype", "of")]
    if type(conditions.tokens) is not int or any(not isinstance(text, str) for text in texts):
        raise TypeError("a condition has the wrong type")
