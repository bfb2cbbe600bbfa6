"""A sweep over several machines: which of them measure, and the loop over their visits.

Who brings visits to machines is behind Fleet; this knows neither a network nor a terminal.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from dnnsep.host.inputs import exists, is_folder
from dnnsep.sweep.case import AnyCase
from dnnsep.sweep.fleetresults import FleetFile, FleetResults
from dnnsep.sweep.host import Visit
from dnnsep.sweep.node import record_of
from dnnsep.sweep.results import Record
from dnnsep.sweep.session import Assignment, Interrupts, Observer, SessionError

# What makes two machines one kind.
_KIND = ("cpu", "cpu_family_model", "isa", "vectors", "cores", "logical_cpus", "caches", "packages")
# Vectors, from the least on.
_VECTORS = ("avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx")
_CONDITION = re.compile(r"(isa|cores|cpu|host)\s*(>=|<=|=|~)\s*(.+)")
_COMPARE = {">=": operator.ge, "<=": operator.le, "=": operator.eq}
# Saving is left out until so many times what it takes has gone by.
_SAVING = 20
# So often a machine that was lost and is there again gets visits.
_CHANCES = 2


@dataclass(frozen=True)
class Machine:
    """A machine that could measure: its ``id`` in the fleet, its host's name, what it says of
    itself (see host.facts), and the ``reason`` why it cannot measure, empty where it can."""

    id: str
    host: str
    facts: dict[str, Any]
    reason: str = ""

    @property
    def kind(self) -> str:
        """Returns what is the same for machines of one kind."""
        return str({fact: self.facts.get(fact) for fact in _KIND})

    @property
    def label(self) -> str:
        """Returns a name of its kind, as ``amd-epyc-9r14-avx512_bf16-2c``."""
        brand = str(self.facts.get("cpu", "")).lower().replace("(r)", "").replace("(tm)", "")
        words = [w for w in re.findall(r"[a-z0-9.+]+", brand) if w not in ("cpu", "processor")]
        return "-".join([*words[:4], str(self.facts["vectors"]), f"{self.facts['cores']}c"])


class MachineLostError(RuntimeError):
    """A machine ended, or could not be reached any more, while it measured."""


class VisitFailedError(RuntimeError):
    """A visit ended by an error of ours or of its machine's system; the message is one line."""


class Fleet(Protocol):
    """Brings visits to machines."""

    def machines(self) -> list[Machine]:
        """Returns all machines, also those that cannot measure."""

    def open(self, assignment: Assignment) -> None:
        """Says how is measured, before the first visit."""

    def start(self, machine: Machine, case: AnyCase, earlier: list[Record], visit: int) -> object:
        """Starts a visit on a machine, and returns what tells it from others under way."""

    def first(self, under_way: Sequence[object]) -> tuple[object, Callable[[], Visit]]:
        """Waits until one of some visits is over; returns it, and what gives its outcome or raises
        MachineLostError or VisitFailedError."""

    def is_there(self, machine: Machine) -> bool:
        """Returns whether a machine can be reached."""

    def close(self) -> None:
        """Ends what runs on the machines for this sweep."""


@dataclass
class Lane:
    """Visits that one machine at a time makes: under a name, in turn, each by the first of the
    machines, which are of one kind."""

    name: str
    machines: deque[Machine]
    visits: Iterator[tuple[int, AnyCase]]
    now: tuple[int, AnyCase] | None = None
    losses: dict[str, int] = field(default_factory=dict)


def chosen(machines: Sequence[Machine], on: str) -> dict[str, list[Machine]]:
    """Returns the machines that measure, by the name that their results are kept under.

    ``on`` is ``each`` (of every kind one, the others of it in its place when it is lost), ``all``,
    or conditions separated by commas, of which all are met by each kind that measures: ``isa``
    (``avx2`` … ``avx512_amx``), ``cores``, ``cpu`` or ``host`` (``~`` for a part of the text), as
    ``isa>=avx512,cpu~epyc``. Raises ValueError where it is none of these, or none is left.
    """
    there = [machine for machine in machines if not machine.reason]
    if on not in ("each", "all"):
        conditions = [_condition(text.strip()) for text in on.split(",")]
        there = [m for m in there if all(holds(m) for holds in conditions)]
    if not there:
        reasons = "; ".join(f"{m.host}: {m.reason}" for m in machines if m.reason)
        raise ValueError(f"no machine is {on}" + (f" ({reasons})" if reasons else ""))
    found: dict[str, list[Machine]] = {}
    kinds: dict[str, str] = {}
    for machine in there:
        if on == "all":
            found[_unlike(f"{machine.label}@{machine.host}", found)] = [machine]
            continue
        if machine.kind not in kinds:
            kinds[machine.kind] = _unlike(machine.label, found)
        found.setdefault(kinds[machine.kind], []).append(machine)
    return found


def _unlike(name: str, taken: dict[str, Any]) -> str:
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if n not in taken)


def _condition(text: str) -> Callable[[Machine], bool]:
    parsed = _CONDITION.fullmatch(text)
    if parsed is None:
        raise ValueError(f"{text!r}: must be each, all, or as isa>=avx512, cores>=8 or cpu~epyc")
    fact, sign, value = parsed.groups()
    if sign == "~" or fact in ("cpu", "host"):
        if sign not in ("~", "=") or fact not in ("cpu", "host"):
            raise ValueError(f"{text!r}: cpu and host are compared by ~ and =, others by >= <= =")
        part = value.lower()

        def holds(machine: Machine) -> bool:
            said = str(machine.facts.get("cpu", "") if fact == "cpu" else machine.host).lower()
            return part in said if sign == "~" else part == said

        return holds
    if fact == "isa":
        if value not in _VECTORS:
            raise ValueError(f"{text!r}: isa is one of {', '.join(_VECTORS)}")
        place = _VECTORS.index
        return lambda m: bool(_COMPARE[sign](place(m.facts["vectors"]), place(value)))
    if not value.isdigit():
        raise ValueError(f"{text!r}: cores are a whole number")
    return lambda m: bool(_COMPARE[sign](m.facts["cores"], int(value)))


class FleetSession:
    """An assignment for each of some machines, with the file that their results are saved in."""

    def __init__(
        self, assignment: Assignment, fleet: Fleet, on: str, path: Path, resume: bool
    ) -> None:
        """Starts anew, or with ``resume`` goes on with the results in ``path`` if there are any.

        Raises SessionError where the file exists and is not to be resumed, or was made in another
        way, and where no machine measures.
        """
        self._assignment, self._fleet = assignment, fleet
        try:
            machines = chosen(fleet.machines(), on)
        except ValueError as error:
            raise SessionError(f"--on: {error}") from None
        if not resume and exists(path):
            raise SessionError(
                f"{path}: exists; add --resume to go on with it, or choose another name"
            )
        if not is_folder(path.parent):
            raise SessionError(f"{path}: no such directory")
        self.results = FleetResults(title=assignment.title)
        if resume and exists(path):
            try:
                self.results = FleetResults.load(path)
            except ValueError as error:
                raise SessionError(str(error)) from None
        for name, group in machines.items():
            self._add(name, group[0], path)
        self._lanes = [self._lane(name, group) for name, group in machines.items()]
        self._file = FleetFile(path, self.results)
        self._saved = self._saving = 0.0

    @property
    def total(self) -> int:
        """How many visits to cases there are in all."""
        return self._assignment.total * len(self._lanes)

    def _add(self, name: str, machine: Machine, path: Path) -> None:
        """Adds a machine's results, or sees that those that there are were made the same way."""
        fresh = self._assignment.fresh_results()
        fresh.fingerprint = machine.facts
        before = self.results.machines.setdefault(name, fresh)
        if before.settings != fresh.settings or before.title != fresh.title:
            raise SessionError(f"{path}: cannot be resumed, its title or settings differ")
        if replace(machine, facts=before.fingerprint).kind != machine.kind:
            raise SessionError(f"{path}: cannot be resumed, {name} is another machine now")

    def _lane(self, name: str, machines: Sequence[Machine]) -> Lane:
        assignment = self._assignment
        visits = itertools.product(range(assignment.effort.visits), assignment.cases)
        return Lane(name, deque(machines), visits)

    def run(self, observer: Observer) -> bool:
        """Measures all cases on all machines into ``results``; returns whether Ctrl-C, or being
        told to end by a signal, ended it early."""
        interrupts = Interrupts()
        under_way: dict[object, Lane] = {}
        try:
            with interrupts:
                try:
                    self._fleet.open(self._assignment)
                    for lane in self._lanes:
                        self._start_next(lane, under_way, observer)
                    while under_way and not interrupts.seen:
                        ticket, outcome = self._fleet.first(list(under_way))
                        lane = under_way.pop(ticket)
                        self._take(lane, outcome, observer)
                        self._start_next(lane, under_way, observer)
                finally:
                    self._fleet.close()
                    self._file.save()
        except KeyboardInterrupt:
            interrupts.seen = True  # also where it came as the block began or ended
            self._file.save()
        return interrupts.seen

    def _start_next(self, lane: Lane, under_way: dict[object, Lane], observer: Observer) -> None:
        """Starts a lane's next visit that has something to do, if there is one."""
        while lane.now is not None or (following := next(lane.visits, None)) is not None:
            lane.now = lane.now or following
            assert lane.now is not None
            visit, case = lane.now
            earlier = self._earlier(lane, case)
            known = {record.backend: record for record in earlier}
            due = any(b not in known or known[b].is_due(visit) for b in case.backends)
            if due and lane.machines:
                observer.step(f"{lane.name} {case.problem}")
                ticket = self._fleet.start(lane.machines[0], case, earlier, visit)
                under_way[ticket] = lane
                return
            if due:  # resuming measures it again
                reason = "every machine of this kind was lost"
                self._keep(lane, self._unmeasured(lane, lane.now, "killed", reason))
            lane.now = None
            observer.advance()

    def _earlier(self, lane: Lane, case: AnyCase) -> list[Record]:
        keys = {case.key(backend) for backend in case.backends}
        return [r for r in self.results.machines[lane.name].records if r.key in keys]

    def _unmeasured(
        self, lane: Lane, what: tuple[int, AnyCase], status: str, reason: str
    ) -> list[Record]:
        """Returns records that say why a visit gave nothing, of the backends that have no record;
        what others found on earlier visits stays."""
        _, case = what
        known = {record.backend for record in self._earlier(lane, case)}
        left = [backend for backend in case.backends if backend not in known]
        return [record_of(case, backend, status=status, reason=reason) for backend in left]

    def _take(self, lane: Lane, outcome: Callable[[], Visit], observer: Observer) -> None:
        """Keeps what a visit gave; where its machine was lost, another one makes it."""
        try:
            made = outcome()
        except MachineLostError:
            self._lose(lane)
            return
        except VisitFailedError as error:
            assert lane.now is not None
            made = Visit(self._unmeasured(lane, lane.now, "failed", str(error)))
        results = self.results.machines[lane.name]
        results.workers |= made.workers
        results.roofs |= made.roofs
        self._keep(lane, made.records)
        lane.now = None
        observer.advance()

    def _lose(self, lane: Lane) -> None:
        """Lets the next machine take a lane's visits; the lost one comes last, if it is still
        there."""
        machine = lane.machines.popleft()
        lane.losses[machine.id] = losses = lane.losses.get(machine.id, 0) + 1
        if losses < _CHANCES and self._fleet.is_there(machine):
            lane.machines.append(machine)

    def _keep(self, lane: Lane, records: Sequence[Record]) -> None:
        results = self.results.machines[lane.name]
        known = {record.key: record for record in results.records}
        results.records = list((known | {record.key: record for record in records}).values())
        self._file.changed(lane.name)
        if monotonic() - self._saved > _SAVING * self._saving:
            start = monotonic()
            self._file.save()
            self._saved = monotonic()
            self._saving = self._saved - start


def with_other_version(machines: Sequence[Machine], ours: dict[str, Any]) -> list[Machine]:
    """Returns the machines, of which those with another dnnsep than ours have that as the reason
    not to measure."""

    def judged(machine: Machine) -> Machine:
        said = machine.facts.get("packages", {}).get("dnnsep")
        wanted = ours["packages"]["dnnsep"]
        if machine.reason or (said == wanted and machine.facts["generator"] == ours["generator"]):
            return machine
        other = f"has dnnsep {said}, not {wanted}" if said != wanted else "has another dnnsep"
        return replace(machine, reason=other)

    return [judged(machine) for machine in machines]
