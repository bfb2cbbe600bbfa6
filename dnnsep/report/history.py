"""How cases move from night to night: their medians over time, and where they changed for good."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnnsep.sweep.results import Key, Results

# What another segment has to save of the sum of absolute deviations, in units of the noise. With
# it 0.0, 1.8 and 1.4 of 1 000 case-nights without a step brought a false alarm (three sets of 40
# cases), and a step of 5 % was found within three nights in 57 of 100 cases, one of 10 % in 97:
# tests/report/test_history.py counts them.
_PENALTY = 7.0
# A night that is so many times the noise from both its neighbours is none of a level.
_SPIKE = 3.5
# A change counts once it was seen on so many nights, after as many before it, and by so much.
_NIGHTS, _LEAST = 3, 0.02
# Noise is taken to be no less: medians of two nights are never as near as a steady clock's.
_LEAST_NOISE = 0.005
# A normal distribution's standard deviation over its median absolute deviation.
_OF_MAD = 1.4826


@dataclass(frozen=True)
class Night:
    """A case on one occasion: when, by which dnnsep (its version, and the commit where the file has
    one), and the median microseconds of a call."""

    created: str
    version: str
    median_us: float


@dataclass(frozen=True)
class Change:
    """The nights from ``index`` on take ``ratio`` times as long as those before, back to the change
    before; ``version`` is the first that does."""

    index: int
    created: str
    version: str
    ratio: float

    @property
    def is_slower(self) -> bool:
        return self.ratio > 1


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
        return len(self.nights) >= 2 * _NIGHTS

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
    """Yields a sweep's records that have a time. A machine is its CPU's name and its cores, and
    its host where its ``name`` in a fleet has one, as machines of the same kind do."""
    facts = results.fingerprint
    _, _, host = name.partition("@")
    machine = f"{facts.get('cpu', 'unknown CPU')}, {facts.get('cores', '?')} cores"
    machine += f", {host}" if host else ""
    version = str(facts.get("packages", {}).get("dnnsep", ""))
    version = " ".join(filter(None, (version, str(facts.get("commit") or "")[:12])))
    for record in results.records:
        if record.time is not None:
            night = Night(results.created, version, record.time.median_us)
            yield Point(machine, record.key, record.name, night)


def points_of_export(path: Path) -> Iterator[Point]:
    """Yields the rows, with a time, of a table that ``dnnsep export`` wrote as parquet; it tells no
    version and no cores. Raises ValueError naming the file where it is none."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: pyarrow is not installed, which reads parquet") from None
    columns = ["cpu", "created", "problem", "name", "backend", "threads", "cache", "median_us"]
    try:
        rows = parquet.read_table(path, columns=columns).to_pylist()
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{path}: not written by dnnsep export: {first}") from None
    for row in rows:
        if row["median_us"] is not None:
            told = (row["cpu"], row["created"], row["problem"], row["backend"], row["cache"])
            numbers = isinstance(row["median_us"], float) and isinstance(row["threads"], int)
            if not all(isinstance(text, str) for text in told) or not numbers:
                raise ValueError(f"{path}: not written by dnnsep export: {str(row)[:100]}")
            if not row["median_us"] > 0:
                raise ValueError(f"{path}: median_us: must be more than 0")
            key = (row["problem"], row["backend"], row["threads"], row["cache"])
            yield Point(row["cpu"], key, row["name"], Night(row["created"], "", row["median_us"]))


def histories(points: Iterable[Point]) -> list[Series]:
    """Returns the series of each case on each machine; of two points at the same time the last
    counts."""
    found: dict[tuple[str, Key], dict[str, Point]] = {}
    for point in points:
        found.setdefault((point.machine, point.key), {})[point.night.created] = point
    series = []
    for (machine, key), by_time in found.items():
        in_order = [by_time[created] for created in sorted(by_time)]
        nights = tuple(point.night for point in in_order)
        series.append(Series(machine, key, in_order[-1].name, nights, changes_of(nights)))
    return series


def changes_of(nights: Sequence[Night]) -> tuple[Change, ...]:
    """Returns where a case's median changed for good: between segments that PELT finds with medians
    as their levels, of which at least three nights in four are 2 % or more from the level before.

    Source of PELT: Killick, Fearnhead and Eckley, Optimal detection of changepoints with a linear
    computational cost, Journal of the American Statistical Association 107 (2012).
    """
    values = np.log([night.median_us for night in nights])
    ends = _segments(values)
    found = []
    for before, start, end in zip([0, *ends], ends, ends[1:], strict=False):
        level = float(np.median(values[before:start]))
        apart = float(np.median(values[start:end])) - level
        beyond = (values[start:end] - level) * np.sign(apart) >= np.log1p(_LEAST)
        # Two nights beside other work in three would be a level of their own.
        if np.sum(~beyond) <= len(beyond) // 4:
            night = nights[start]
            found.append(Change(start, night.created, night.version, float(np.exp(apart))))
    return tuple(found)


def _segments(values: NDArray[np.float64]) -> list[int]:
    """Returns the ends of the segments, the last one being the number of values."""
    if len(values) < 2 * _NIGHTS:
        return [len(values)]
    import ruptures

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = ruptures.Pelt(model="l1", min_size=_NIGHTS, jump=1)
        scaled = _without_spikes(values) / noise_of(values)
        return [int(end) for end in search.fit(scaled).predict(pen=_PENALTY)]


def _without_spikes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the values with those that stand out from both neighbours put between these."""
    middle = np.median([values[:-2], values[1:-1], values[2:]], axis=0)
    inner = values[1:-1]
    stands_out = np.abs(inner - middle) > _SPIKE * noise_of(values)
    found = values.copy()
    found[1:-1] = np.where(stands_out, middle, inner)
    return found


def noise_of(values: NDArray[np.float64]) -> float:
    """Returns the standard deviation of a series beside its steps and its outliers, from what
    neighbours differ by."""
    apart = float(np.median(np.abs(np.diff(values))))
    return max(_OF_MAD * apart / math.sqrt(2), _LEAST_NOISE)
