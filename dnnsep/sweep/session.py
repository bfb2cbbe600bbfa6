"""One run of a sweep: its loop over visits and cases, resuming, saving, and Ctrl-C.

A session knows no terminal: it tells an Observer how far it is, and raises SessionError, whose
message is one line, where it cannot start. Results are saved after each visit to a case, so that
whatever ends a session early costs at most that one visit.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dnnsep.host.inputs import exists, is_folder
from dnnsep.host.machine import cpus_for, fingerprint
from dnnsep.measure.calibrate import Calibrator
from dnnsep.measure.roofs import Roofs
from dnnsep.sweep.case import AnyCase
from dnnsep.sweep.client import Allocator
from dnnsep.sweep.node import Effort, LocalNode
from dnnsep.sweep.results import Results


class SessionError(ValueError):
    """The results' file does not allow this session; the message says in one line why."""


class Observer(Protocol):
    """Who is told how far a session is."""

    def roofs(self, measured: Roofs) -> None:
        """The machine's roofs for a number of threads have been measured."""

    def no_roofs(self, reason: str) -> None:
        """The roofs could not be measured, for this reason; cases are measured all the same."""

    def step(self, text: str) -> None:
        """Something is being done now, e.g. ``mb1ic… prepare onednn``."""

    def advance(self) -> None:
        """One visit to one case is over and saved."""


@dataclass(frozen=True)
class Assignment:
    """What a session is to measure, and how.

    ``settings`` are what the command was asked for beside ``effort`` and ``allocator``; results can
    only be resumed by a session with the same title, machine and settings. ``with_roofs`` says
    whether the machine's roofs are measured first, for each number of threads of the cases.
    """

    title: str
    cases: Sequence[AnyCase]
    settings: dict[str, Any]
    effort: Effort
    allocator: Allocator
    with_roofs: bool = True

    @property
    def caches(self) -> list[str]:
        """The cache states of the cases, each once."""
        return sorted({case.cache for case in self.cases})

    @property
    def total(self) -> int:
        """How many visits to cases there are in all."""
        return len(self.cases) * self.effort.visits

    def fresh_results(self) -> Results:
        """Returns results without a record, with the settings that they are going to be made by."""
        settings = {
            **self.settings,
            "seconds": self.effort.seconds,
            "precision_percent": round(100 * self.effort.precision, 6),
            "visits": self.effort.visits,
            "stages": self.effort.stages,
            "allocator": self.allocator,
            "caches": self.caches,
        }
        return Results(title=self.title, fingerprint=fingerprint(), settings=settings)


class Session:
    """An assignment with the file that its results are saved in."""

    def __init__(self, assignment: Assignment, path: Path, resume: bool) -> None:
        """Starts anew, or with ``resume`` goes on with the results in ``path`` if there are any.

        Raises SessionError where the file exists and is not to be resumed, was made in another way
        or on another machine, or where its folder does not exist.
        """
        self._assignment = assignment
        self._path = path
        self._stopped = False
        self.results = assignment.fresh_results()
        if resume:
            self.results = _resumed(path, self.results)
        elif exists(path):
            raise SessionError(
                f"{path}: exists; add --resume to go on with it, or choose another name"
            )
        elif not is_folder(path.parent):
            raise SessionError(f"{path}: no such directory")

    def measure_roofs(self, observer: Observer) -> None:
        """Measures the roofs that the assignment asks for and the results do not have yet.

        Where Ctrl-C ends it, the roofs measured before are saved, and ``run`` measures nothing.
        """
        counts = {case.threads for case in self._assignment.cases}
        missing = counts - set(self.results.roofs) if self._assignment.with_roofs else set()
        interrupts = Interrupts()
        try:
            with interrupts:
                for count in sorted(missing):
                    self._measure_roofs(count, observer)
                    if interrupts.seen:
                        break
        except KeyboardInterrupt:
            interrupts.seen = True  # also where it came as the block began or ended
        self._stopped = interrupts.seen

    def _measure_roofs(self, count: int, observer: Observer) -> None:
        try:
            with Calibrator(cpus_for(count)) as calibrator:
                self.results.roofs[count] = calibrator.roofs()
        except RuntimeError as error:
            observer.no_roofs(str(error))
        else:
            observer.roofs(self.results.roofs[count])

    def run(self, observer: Observer) -> bool:
        """Measures all cases into ``results``; returns whether Ctrl-C, or being told to end by a
        signal, ended it early."""
        assignment, results = self._assignment, self.results
        if self._stopped:
            results.save(self._path)
            return True
        records = {record.key: record for record in results.records}
        probe_cache = assignment.with_roofs and len(assignment.caches) == 1
        node = LocalNode(assignment.effort, assignment.allocator, results.roofs, probe_cache)
        interrupts = Interrupts()
        visits = itertools.product(range(assignment.effort.visits), assignment.cases)
        try:
            with interrupts, node:
                for visit, case in visits:
                    measured = node.run(case, records, visit, observer.step)
                    records |= {record.key: record for record in measured}
                    results.records = list(records.values())
                    results.workers |= node.workers
                    results.save(self._path)
                    observer.advance()
                    if interrupts.seen:
                        break
        except KeyboardInterrupt:
            interrupts.seen = True  # also where it came as the block began or ended
            results.save(self._path)
        return interrupts.seen


class Interrupts:
    """Notes within a block whether Ctrl-C came: Python drops the exception in a destructor.

    Ctrl-C raises KeyboardInterrupt as ever, and sets ``seen`` for where that got lost. So do the
    signals that ask a process to end, except a terminal's closing where nohup has it ignored.
    """

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> Interrupts:
        asking = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            asking.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in asking}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt


def _resumed(path: Path, fresh: Results) -> Results:
    """Returns the results to go on with: those in the file, if they were made the same way here."""
    if not exists(path):
        return fresh
    try:
        old = Results.load(path)
    except ValueError as error:
        raise SessionError(str(error)) from None
    for field in ("title", "fingerprint", "settings"):
        before, now = getattr(old, field), getattr(fresh, field)
        if before != now:
            changed = (
                [k for k in now if before.get(k) != now[k]] if isinstance(now, dict) else [now]
            )
            raise SessionError(
                f"{path}: cannot be resumed, its {field} differs ({', '.join(changed)})"
            )
    return old
