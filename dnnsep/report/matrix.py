"""Problems by machines: which backend is the fastest on each, and where that changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dnnsep.sweep.results import Key, Record, Results

# What tells rows apart: a record's key but for its backend.
_Row = tuple[str, int, str]


@dataclass(frozen=True)
class Cell:
    """The fastest backend of a problem on a machine, what others took longer by (1.2: the next one
    takes 1.2 times as long; None where it is alone), and its share of the roof, 0 to 1."""

    backend: str
    lead: float | None
    roof_share: float | None

    def __str__(self) -> str:
        lead = "" if self.lead is None else f" {self.lead:.2f}x"
        share = "" if self.roof_share is None else f", {self.roof_share:.0%}"
        return f"{self.backend}{lead}{share}"


@dataclass(frozen=True)
class Line:
    """A problem's cells, one for each machine, None where it has no figures; ``changes`` says
    whether the winner is not the same on all."""

    title: str
    cells: tuple[Cell | None, ...]

    @property
    def changes(self) -> bool:
        return len({cell.backend for cell in self.cells if cell is not None}) > 1


@dataclass(frozen=True)
class Matrix:
    """The lines of all problems, and the names of the machines."""

    machines: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def summary(self) -> str:
        """Returns in one line how often the winner changes, and who wins where."""
        changed = sum(line.changes for line in self.lines)
        wins = []
        for number, machine in enumerate(self.machines):
            of_machine = [line.cells[number] for line in self.lines]
            counts = Counter(cell.backend for cell in of_machine if cell is not None)
            won = ", ".join(f"{backend} {count}" for backend, count in counts.most_common())
            wins.append(f"{machine}: {won or 'nothing measured'}")
        return (
            f"the fastest backend changes from machine to machine on {changed} of "
            f"{len(self.lines)} problems ({'; '.join(wins)})"
        )


def matrix_of(files: Sequence[tuple[str, Results]]) -> Matrix | None:
    """Returns the matrix of results by machine, each under its label; None where there is only one
    or no problem was measured on two."""
    by_row: dict[_Row, list[dict[str, Record]]] = {}
    for number, (_, results) in enumerate(files):
        for record in results.records:
            cells = by_row.setdefault(_row(record.key), [{} for _ in files])
            if record.time is not None:
                cells[number][record.backend] = record
    shared = {row: cells for row, cells in by_row.items() if sum(map(bool, cells)) > 1}
    if len(files) < 2 or not shared:
        return None
    lines = []
    for (problem, threads, cache), cells in shared.items():
        name = next(record.name for cell in cells for record in cell.values())
        title = " ".join(filter(None, (name, problem, f"threads {threads}")))
        title += " cold" if cache == "cold" else ""
        lines.append(Line(title, tuple(map(_cell, cells))))
    return Matrix(tuple(label for label, _ in files), tuple(lines))


def _row(key: Key) -> _Row:
    problem, _, threads, cache = key
    return problem, threads, cache


def _cell(records: dict[str, Record]) -> Cell | None:
    times = sorted(
        (record.time.median_us, backend)
        for backend, record in records.items()
        if record.time is not None
    )
    if not times:
        return None
    (best, backend), *others = times
    lead = others[0][0] / best if others else None
    return Cell(backend, lead, records[backend].roof_share)
