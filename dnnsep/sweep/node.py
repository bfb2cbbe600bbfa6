"""This machine as a place where cases are measured: every backend checked, then timed in turns.

A visit to a case goes in, a record for each backend comes out; the sweep's loop (session.py) knows
nothing else of the machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from dnnsep.host.machine import cpus_for
from dnnsep.host.unnamed import unnamed_file
from dnnsep.measure.calibrate import Calibrator
from dnnsep.measure.roofs import Roofs
from dnnsep.measure.stats import Round, Stats
from dnnsep.measure.warnings import Load, ratio_to_other_cache, warnings_of
from dnnsep.sweep.case import AnyCase, why_not
from dnnsep.sweep.client import Allocator, Client, WorkerError, WorkerKilledError
from dnnsep.sweep.results import Key, Record

# Turns each backend gets before a visit may end: A B C A B C …, so that drift of the machine hits
# all alike. Enough for an interval of the median.
MIN_ROUNDS = 8

# The longest burst, in seconds, and into how many the time for a visit is cut at least.
_BURST = 0.05
_BURSTS = 10
# No more bursts than this: of calls of a microsecond one has but 100, and what is around it takes
# some 30 milliseconds.
_MOST_ROUNDS = 60

# How long a visit waits in all for the machine to be quiet, as a share of its time.
_WAIT = 1.5

# A backend so slow that its rounds take this many times the budget is stopped after three.
_PATIENCE = 4

# Calls in the other cache state, to see whether it matters.
_PROBE_SECONDS = 0.02


@dataclass(frozen=True)
class Effort:
    """How much is measured: ``seconds`` for each backend on a visit to a problem at most, less
    where the 95 % intervals of all its backends' medians are within ``precision`` before; the
    sweep visits each problem ``visits`` times; ``stages`` are timed apart as well."""

    seconds: float = 1.0
    precision: float = 0.02
    visits: int = 1
    stages: bool = False


_Place = tuple[str, str]


@dataclass
class _Entry:
    """A backend on a visit to a case: either a client ready to be timed, or a record already."""

    backend: str
    client: Client | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    record: Record | None = None
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    peak_memory: int | None = None
    cold_over_hot: float | None = None

    @property
    def seconds(self) -> float:
        return sum(sum(r.calls_us) for r in self.rounds["all"]) / 1e6

    def precise(self, precision: float) -> bool:
        stats = Stats.of(self.rounds["all"])
        return stats.precision is not None and stats.precision <= precision


class LocalNode:
    """This machine, with one worker process for each backend through a sweep.

    Use as a context manager: leaving it ends the workers. This class is the seam where another
    machine could take a visit: whatever has ``run`` (a case and its earlier records in, records
    out), ``workers`` (what the workers said of themselves when they started) and the context
    manager's two methods can stand in its place, since cases and records are plain values.
    """

    def __init__(
        self, effort: Effort, allocator: Allocator, roofs: Mapping[int, Roofs], probe_cache: bool
    ) -> None:
        """``allocator`` is the workers'; ``roofs``, by threads, give the records their share;
        ``probe_cache`` asks for a few calls in the other cache state on every case."""
        self._effort = effort
        self._allocator: Allocator = allocator
        self._roofs = roofs
        self._probe_cache = probe_cache
        # By worker module and backend: an engine may run both problems and blocks.
        self._loaded: dict[_Place, Client] = {}  # processes that have not been started as workers
        self._clients: dict[_Place, Client] = {}
        self._calibrators: dict[int, Calibrator] = {}
        self._unavailable: dict[_Place, str] = {}
        self.workers: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> LocalNode:
        return self

    def __exit__(self, *_: object) -> None:
        for client in (*self._clients.values(), *self._loaded.values()):
            client.close()
        for calibrator in self._calibrators.values():
            calibrator.close()

    def run(
        self,
        case: AnyCase,
        earlier: Mapping[Key, Record] | None = None,
        visit: int = 0,
        on_step: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Record]:
        """Visits a case; yields a record for each backend, with the rounds of earlier visits.

        Leaves out backends whose record in ``earlier`` has this visit's figures, or none at all.
        """
        earlier = earlier or {}
        found = {b: earlier.get(case.key(b)) for b in case.backends}
        todo = [b for b, record in found.items() if record is None or record.is_due(visit)]
        if not todo:
            return
        reasons = {b: reason for b in todo if (reason := why_not(case, b))}
        for backend, reason in reasons.items():
            yield record_of(case, backend, status="refused", reason=reason)
        todo = [b for b in todo if b not in reasons]
        if not todo:
            return
        problem = str(case.problem)
        self._load(todo, case.worker, on_step)
        on_step(f"{problem} reference")
        with unnamed_file() as data:
            try:
                case.save_data(data)
            except (MemoryError, OSError) as error:
                reason = f"no reference: {type(error).__name__}: {error}"
                for backend in todo:
                    yield record_of(case, backend, status="failed", reason=reason)
                return
            entries = []
            for backend in todo:
                on_step(f"{problem} prepare {backend}")
                entries.append(self._prepare(case, backend, data))
        on_step(f"{problem} measure")
        load = self._measure(case, entries, visit)
        for entry in entries:
            before = found[entry.backend]
            if entry.record is None:
                yield self._finish(case, entry, before, load)
            elif entry.record.status == "killed" and before is not None:
                yield before  # its figures stay, and this visit stays due
            else:
                yield entry.record

    def _prepare(self, case: AnyCase, backend: str, data: Path) -> _Entry:
        entry = _Entry(backend)
        try:
            client = self._client(backend, case.worker)
            if client is None:
                entry.record = record_of(
                    case,
                    backend,
                    status="refused",
                    reason=self._unavailable[case.worker, backend],
                )
                return entry
            cpus = cpus_for(case.threads)
            entry.answer = client.ask(
                "prepare", problem=str(case.problem), cpus=cpus, data=str(data)
            )
        except WorkerError as error:
            entry.record = _ended(case, backend, error)
            return entry
        if "refused" in entry.answer:
            entry.record = record_of(
                case, backend, status="refused", reason=entry.answer["refused"]
            )
        elif not entry.answer["correct"]:
            entry.record = record_of(
                case, backend, status="incorrect", reason=entry.answer["check"]
            )
        entry.client = client
        targets = ["all", *(entry.answer.get("stages", []) if self._effort.stages else [])]
        entry.rounds = {target: [] for target in targets}
        return entry

    def _load(self, backends: list[str], worker: str, on_step: Callable[[str], None]) -> None:
        """Starts the processes that the first cases need and has all import their frameworks at
        once; each is asked to run something only later, alone."""
        known = {*self._clients, *self._loaded, *self._unavailable}
        new = [b for b in backends if (worker, b) not in known]
        if not new:
            return
        on_step(f"load {', '.join(new)}")
        self._loaded |= {(worker, b): Client(b, self._allocator, worker=worker) for b in new}

        def load(backend: str) -> None:
            with contextlib.suppress(WorkerError):  # it is said when the worker is to start
                self._loaded[worker, backend].ask("load")

        with ThreadPoolExecutor(len(new)) as pool:
            list(pool.map(load, new))

    def _client(self, backend: str, worker: str) -> Client | None:
        """Returns the backend's worker, started if need be; None if the backend is not there."""
        place = (worker, backend)
        if place in self._unavailable:
            return None
        client = self._clients.get(place)
        if client is None or not client.alive:
            client = self._loaded.pop(place, None)
            client = client or Client(backend, self._allocator, worker=worker)
            self._clients[place] = client
            started = client.ask("start")
            if "unavailable" in started:
                self._unavailable[place] = started["unavailable"]
                client.close()
                return None
            # A worker of problems says more than one of blocks.
            self.workers[backend] = self.workers.get(backend, {}) | started
        return client

    def _calibrator(self, threads: int) -> Calibrator:
        if threads not in self._calibrators:
            self._calibrators[threads] = Calibrator(cpus_for(threads))
        return self._calibrators[threads]

    def _measure(self, case: AnyCase, entries: list[_Entry], visit: int) -> Load:
        """Makes rounds over the entries until all medians are precise or the time is up."""
        effort = self._effort
        load = Load([c.pid for c in self._clients.values() if c.alive])
        waiting = _WAIT * effort.seconds * len(entries)
        calibrator = self._calibrator(case.threads)
        control = calibrator.control()
        turns = 0
        while going := [entry for entry in entries if entry.record is None]:
            if turns >= MIN_ROUNDS and all(entry.precise(effort.precision) for entry in going):
                break
            asked = [entry for entry in going if not self._is_over(entry)]
            if not asked:
                break
            for entry in asked:
                start = monotonic()
                before = calibrator.quiet_control(control, waiting)
                waiting -= monotonic() - start
                calls = self._burst(case, entry)
                control = calibrator.control()
                for target, calls_us in calls.items():
                    entry.rounds[target].append(
                        Round(visit=visit, before=before, after=control, calls_us=calls_us)
                    )
            turns += 1
        load.stop()
        if self._probe_cache:
            for entry in going:
                self._probe_other_cache(case, entry)
        return load

    def _is_over(self, entry: _Entry) -> bool:
        """Returns whether an entry has had its time, or bursts enough."""
        rounds = len(entry.rounds["all"])
        if rounds >= _MOST_ROUNDS:
            return True
        limit = 1.0 if rounds >= MIN_ROUNDS else _PATIENCE
        return rounds >= 3 and entry.seconds >= limit * self._effort.seconds

    def _burst(self, case: AnyCase, entry: _Entry) -> dict[str, list[float]]:
        """Returns the times of a burst of calls of each of an entry's targets; none if its worker
        ends."""
        assert entry.client is not None
        seconds = min(_BURST, self._effort.seconds / _BURSTS)
        calls: dict[str, list[float]] = {}
        try:
            for target in entry.rounds:
                answer = entry.client.ask("time", target=target, seconds=seconds, cache=case.cache)
                entry.peak_memory = answer["peak_memory_bytes"]
                calls[target] = answer["calls_us"]
        except WorkerError as error:
            entry.record = _ended(case, entry.backend, error)
            return {}
        return calls

    def _probe_other_cache(self, case: AnyCase, entry: _Entry) -> None:
        assert entry.client is not None
        other = "cold" if case.cache == "hot" else "hot"
        try:
            answer = entry.client.ask("time", target="all", seconds=_PROBE_SECONDS, cache=other)
        except WorkerError as error:
            entry.record = _ended(case, entry.backend, error)
            return
        measured = Stats.of(entry.rounds["all"]).median_us
        entry.cold_over_hot = ratio_to_other_cache(measured, answer["calls_us"], case.cache)

    def _finish(self, case: AnyCase, entry: _Entry, before: Record | None, load: Load) -> Record:
        rounds = [*(before.rounds if before else []), *entry.rounds.pop("all")]
        time = Stats.of(rounds)
        gflops = round(case.flops / time.median_us / 1000, 3)
        roofs = self._roofs.get(case.threads)
        roof = case.roof(roofs) if roofs else None
        warnings = warnings_of(
            time, rounds, load, entry.answer["denormals"], entry.cold_over_hot, case.cache
        )
        earlier = before.warnings if before else []
        one_of_a_kind = {text.partition(":")[0]: text for text in [*earlier, *warnings]}
        return record_of(
            case,
            entry.backend,
            status="ok",
            ran_on=entry.answer["ran_on"],
            check=entry.answer["check"],
            impls=entry.answer["impls"],
            time=time,
            gflops=gflops,
            roof=roof.judging(gflops) if roof else None,
            stages={name: Stats.of(stage) for name, stage in entry.rounds.items()},
            output=entry.answer["output"],
            peak_memory_bytes=entry.peak_memory,
            cpus=entry.answer["cpus"],
            warnings=list(one_of_a_kind.values()),
            rounds=rounds,
        )


def _ended(case: AnyCase, backend: str, error: WorkerError) -> Record:
    """Returns the record of a backend whose worker has ended."""
    killed = isinstance(error, WorkerKilledError)
    return record_of(case, backend, status="killed" if killed else "failed", reason=str(error))


def record_of(case: AnyCase, backend: str, **fields: Any) -> Record:
    """Returns a case's record on a backend, with these fields."""
    return Record(
        problem=str(case.problem),
        name=case.name,
        backend=backend,
        threads=case.threads,
        cache=case.cache,
        flops=case.flops,
        **fields,
    )
