"""How cases move from night to night: their medians over time, and where they changed for good."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from math import inf
from operator import mul
from pathlib import Path
from typing import Any

from dnnsep.report.load import version_of
from dnnsep.report.steps import LEAST, MIN_SIDE, find_steps
from dnnsep.sweep.results import Key, Results, moment_of


@dataclass(frozen=True)
class Night:
    """A case on one occasion: when, by which dnnsep (its version, and the commit where the file has
    one), and the median microseconds of a call."""

    created: str
    version: str
    median_us: float

    @property
    def moment(self) -> datetime:
        """Returns ``created`` as a time in UTC, which can be compared."""
        return moment_of(self.created)


@dataclass(frozen=True)
class Change:
    """The nights from ``index`` on take ``ratio`` times as long as those before, back to the change
    before; ``version`` is the first that does. ``p_value`` is as a Step has it."""

    index: int
    created: str
    version: str
    ratio: float
    p_value: float

    @property
    def is_slower(self) -> bool:
        return self.ratio > 1

    @property
    def moment(self) -> datetime:
        """Returns ``created`` as a time in UTC, which can be compared."""
        return moment_of(self.created)


@dataclass(frozen=True)
class Series:
    """A case on a machine over its nights, in order."""

    machine: str
    key: Key
    name: str | None
    nights: tuple[Night, ...]
    changes: tuple[Change, ...]

    @property
    def enough(self) -> bool:
        """Returns whether there are nights enough for a change to be seen."""
        return len(self.nights) >= 2 * MIN_SIDE

    @property
    def times_fastest(self) -> float:
        """Returns how many times as long the nights since the last change take as those of the
        fastest level."""
        levels = list(accumulate((change.ratio for change in self.changes), mul, initial=1.0))
        return levels[-1] / min(levels)

    @property
    def is_slower(self) -> bool:
        """Returns whether the newest level is slower than one before, whatever came between."""
        return self.times_fastest >= 1 + LEAST

    @property
    def title(self) -> str:
        """Returns what tells it from others."""
        problem, backend, threads, cache = self.key
        cold = " cold" if cache == "cold" else ""
        return f"{self.name or problem} {backend} threads {threads}{cold}"


@dataclass(frozen=True)
class Point:
    """A night of a case on a machine, as a file tells it."""

    machine: str
    key: Key
    name: str | None
    night: Night


def points_of(results: Results, name: str = "") -> Iterator[Point]:
    """Yields a sweep's records that have a time; ``name`` is the machine's in a fleet."""
    facts = results.fingerprint
    machine = _machine(facts.get("cpu") or "unknown CPU", facts.get("cores"), name)
    version = version_of(facts)
    for record in results.records:
        if record.time is not None:
            night = Night(results.created, version, record.time.median_us)
            yield Point(machine, record.key, record.name, night)


def _machine(cpu: str, cores: int | None, name: str) -> str:
    """Returns what tells a machine from others: its CPU's name and its cores, and its host where
    its ``name`` in a fleet has one, as machines of the same kind do."""
    _, _, host = name.partition("@")
    return f"{cpu}, {cores or '?'} cores" + (f", {host}" if host else "")


# The columns of an export that a history needs, and those that older ones do not have.
_COLUMNS = ("cpu", "created", "problem", "name", "backend", "threads", "cache", "median_us")
_LATER_COLUMNS = ("dnnsep_version", "cores", "machine")


def points_of_export(path: Path) -> Iterator[Point]:
    """Yields the rows, with a time, of a table that ``dnnsep export`` wrote as parquet. Raises
    ValueError naming the file where it is none."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: pyarrow is not installed, which reads parquet") from None
    try:
        there = parquet.read_schema(path).names
        columns = [*_COLUMNS, *(name for name in _LATER_COLUMNS if name in there)]
        rows = parquet.read_table(path, columns=columns).to_pylist()
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{path}: not written by dnnsep export: {first}") from None
    for row in rows:
        if row["median_us"] is not None:
            yield _point_of_row(path, row)


def _point_of_row(path: Path, row: dict[str, Any]) -> Point:
    """Returns a row of an export. Raises ValueError naming the file where it is none."""
    version, cores = row.get("dnnsep_version") or "", row.get("cores") or 0
    name = row.get("machine") or ""
    columns = ("cpu", "created", "problem", "backend", "cache")
    texts = (*(row[column] for column in columns), version, name)
    numbers = isinstance(row["median_us"], float) and isinstance(row["threads"], int)
    if not (numbers and isinstance(cores, int) and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"{path}: not written by dnnsep export: {str(row)[:100]}")
    if not 0 < row["median_us"] < inf:
        raise ValueError(f"{path}: median_us: must be more than 0 and finite")
    try:
        moment_of(row["created"])
    except ValueError as error:
        raise ValueError(f"{path}: created: {error}") from None
    key = (row["problem"], row["backend"], row["threads"], row["cache"])
    night = Night(row["created"], version, row["median_us"])
    return Point(_machine(row["cpu"], cores, name), key, row["name"], night)


def histories(points: Iterable[Point], rate: float) -> list[Series]:
    """Returns the series of each case on each machine, with the changes that ``changes_of`` finds;
    of two points at the same moment the last counts."""
    found: dict[tuple[str, Key], dict[datetime, Point]] = {}
    for point in points:
        found.setdefault((point.machine, point.key), {})[point.night.moment] = point
    series = []
    for (machine, key), by_time in found.items():
        in_order = [by_time[moment] for moment in sorted(by_time)]
        nights = tuple(point.night for point in in_order)
        series.append(Series(machine, key, in_order[-1].name, nights, changes_of(nights, rate)))
    return series


def changes_of(nights: Sequence[Night], rate: float) -> tuple[Change, ...]:
    """Returns where a case's median changed for good, with p-values below ``rate``."""
    found = []
    for step in find_steps([night.median_us for night in nights], rate):
        night = nights[step.index]
        found.append(Change(step.index, night.created, night.version, step.ratio, step.p_value))
    return tuple(found)
