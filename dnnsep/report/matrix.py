"""Problems by machines: which backend is the fastest on each, and where that changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dnnsep.report.answer import is_clearly_slower, runners
from dnnsep.report.table import Place, group_of, place
from dnnsep.sweep.results import Record, Results


@dataclass(frozen=True)
class Cell:
    """The record of the fastest backend of a problem on a machine.

    ``lead`` is what the next one takes longer by (1.2: it takes 1.2 times as long), and ``clear``
    whether the 95 % intervals of the two medians lie apart. ``lead`` is None where the backend is
    alone, ``clear`` there and where one has no interval.
    """

    record: Record
    lead: float | None
    clear: bool | None

    @property
    def backend(self) -> str:
        """Returns the fastest backend."""
        return self.record.backend

    def __str__(self) -> str:
        lead = "" if self.lead is None else f" {self.lead:.2f}x"
        share = self.record.roof_share
        return f"{self.backend}{lead}{'' if share is None else f', {share:.0%}'}"


@dataclass(frozen=True)
class Line:
    """A problem's cells, one for each machine, None where it has no figures."""

    title: str
    cells: tuple[Cell | None, ...]

    @property
    def group(self) -> str:
        """Returns what problems share that stand together, such as ``f32 batch 1 threads 2``."""
        return group_of(next(cell.record for cell in self.cells if cell is not None))

    @property
    def changes(self) -> bool:
        """Returns whether the winner is not the same on all machines."""
        return len({cell.backend for cell in self.cells if cell is not None}) > 1

    @property
    def changes_clearly(self) -> bool:
        """Returns whether two machines have different winners that both lead clearly."""
        return len({cell.backend for cell in self.cells if cell is not None and cell.clear}) > 1

    @property
    def least_lead(self) -> float:
        """Returns the lead of the winner that leads by least where it leads by most; 1 stands for
        one that is alone."""
        leads: dict[str, float] = {}
        for cell in self.cells:
            if cell is not None:
                leads[cell.backend] = max(leads.get(cell.backend, 1.0), cell.lead or 1.0)
        return min(leads.values())


@dataclass(frozen=True)
class Matrix:
    """The lines of all problems, and the names of the machines."""

    machines: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def headline(self) -> str:
        """Returns in one line how often the winner changes."""
        return (
            f"the fastest backend changes from machine to machine on {len(self.changes)} of "
            f"{len(self.lines)} problems"
        )

    @property
    def summary(self) -> str:
        """Returns in one line how often the winner changes, and who wins where."""
        wins = []
        for number, machine in enumerate(self.machines):
            of_machine = [line.cells[number] for line in self.lines]
            counts = Counter(cell.backend for cell in of_machine if cell is not None)
            won = ", ".join(f"{backend} {count}" for backend, count in counts.most_common())
            wins.append(f"{machine}: {won or 'nothing measured'}")
        return f"{self.headline} ({'; '.join(wins)})"

    @property
    def changes(self) -> list[Line]:
        """Returns the lines where the winner changes: the clear ones first, then by their lead."""
        changed = [line for line in self.lines if line.changes]
        return sorted(changed, key=lambda line: (not line.changes_clearly, -line.least_lead))

    @property
    def clear_text(self) -> str:
        """Returns on how many problems the winner changes for certain."""
        clear = sum(line.changes_clearly for line in self.lines) or "none"
        return (
            f"{clear} of them clearly: two machines have winners that differ, each ahead of the "
            "next by more than the 95 % intervals of the two medians"
        )

    def wins_text(self, line: Line) -> str:
        """Returns who wins a problem where and by how much, such as ``fused on zen 2.00x; eager on
        xeon 1.01x (the intervals overlap)``."""
        wins: dict[str, list[str]] = {}
        for machine, cell in zip(self.machines, line.cells, strict=True):
            if cell is not None:
                wins.setdefault(cell.backend, []).append(f"{machine} {_lead_text(cell)}")
        places = (f"{backend} on {', '.join(where)}" for backend, where in wins.items())
        return "; ".join(places)


def matrix_of(files: Sequence[tuple[str, Results]]) -> Matrix | None:
    """Returns the matrix of results by machine, each under its label; None where there is only one
    or no problem was measured on two."""
    by_place: dict[Place, list[dict[str, Record]]] = {}
    for number, (_, results) in enumerate(files):
        for record in results.records:
            cells = by_place.setdefault(place(record), [{} for _ in files])
            if record.time is not None:
                cells[number][record.backend] = record
    shared = {where: cells for where, cells in by_place.items() if sum(map(bool, cells)) > 1}
    if len(files) < 2 or not shared:
        return None
    lines = []
    for (problem, threads, cache), cells in shared.items():
        name = next(record.name for cell in cells for record in cell.values())
        title = " ".join(filter(None, (name, problem, f"threads {threads}")))
        title += " cold" if cache == "cold" else ""
        lines.append(Line(title, tuple(map(_cell, cells))))
    return Matrix(tuple(label for label, _ in files), tuple(lines))


def _cell(records: dict[str, Record]) -> Cell | None:
    timed = [(r.time.median_us, r) for r in runners(records).values() if r.time is not None]
    if not timed:
        return None
    (best_us, best), *others = sorted(timed, key=lambda pair: (pair[0], pair[1].backend))
    if not others:
        return Cell(best, None, None)
    next_us, following = others[0]
    return Cell(best, next_us / best_us, is_clearly_slower(following, best))


def _lead_text(cell: Cell) -> str:
    if cell.lead is None:
        return "alone"
    doubt = {True: "", False: " (the intervals overlap)", None: " (no interval)"}[cell.clear]
    return f"{cell.lead:.2f}x{doubt}"
