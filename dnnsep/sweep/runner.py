"""Runs a sweep's cases: every backend checked, then timed in turns, a record for each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnnsep.cost import cost
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.client import Allocator, Client, WorkerError
from dnnsep.sweep.config import Case
from dnnsep.sweep.results import Key, Record
from dnnsep.sweep.stats import Stats

# Turns a backend gets per case: A B C A B C …, so that drift of the machine hits all alike.
ROUNDS = 10

# A backend so slow that its rounds take this many times the budget is stopped after three.
_PATIENCE = 4


@dataclass
class _Entry:
    """A backend within a case: either a client ready to be timed, or a record already."""

    backend: str
    client: Client | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    record: Record | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)


class Runner:
    """Keeps one worker process for each backend through a sweep. Use as a context manager."""

    def __init__(self, seconds: float, time_stages: bool, allocator: Allocator) -> None:
        """``seconds`` is the time each backend is measured per case; ``time_stages`` adds as much
        for each of its stages; ``allocator`` is the workers'."""
        self._allocator: Allocator = allocator
        self._seconds = seconds
        self._time_stages = time_stages
        self._clients: dict[str, Client] = {}
        self._unavailable: dict[str, str] = {}
        self.workers: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def run(
        self,
        case: Case,
        done: Collection[Key] = (),
        on_step: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Record]:
        """The records of a case's backends, all but those whose key is in ``done``."""
        problem = str(case.problem)
        todo = [b for b in case.backends if (problem, b, case.threads) not in done]
        if not todo:
            return
        on_step(f"{problem} reference")
        with tempfile.TemporaryDirectory(prefix="dnnsep-") as folder:
            data = Path(folder) / "data.npz"
            try:
                CheckData.exact(case.problem).save(data)
            except (MemoryError, OSError) as error:
                reason = f"no reference: {type(error).__name__}: {error}"
                for backend in todo:
                    yield _record(case, backend, status="failed", reason=reason)
                return
            entries = []
            for backend in todo:
                on_step(f"{problem} prepare {backend}")
                entries.append(self._prepare(case, backend, data))
        on_step(f"{problem} measure")
        for _ in range(ROUNDS):
            for entry in entries:
                if entry.record is None:
                    self._burst(case, entry)
        for entry in entries:
            yield entry.record or self._finish(case, entry)

    def _prepare(self, case: Case, backend: str, data: Path) -> _Entry:
        entry = _Entry(backend)
        try:
            client = self._client(backend)
            if client is None:
                entry.record = _record(
                    case, backend, status="refused", reason=self._unavailable[backend]
                )
                return entry
            entry.answer = client.ask(
                "prepare", problem=str(case.problem), threads=case.threads, data=str(data)
            )
        except WorkerError as error:
            entry.record = _record(case, backend, status="failed", reason=str(error))
            return entry
        if "refused" in entry.answer:
            entry.record = _record(case, backend, status="refused", reason=entry.answer["refused"])
        elif not entry.answer["correct"]:
            entry.record = _record(case, backend, status="incorrect", reason=entry.answer["check"])
        entry.client = client
        targets = ["all", *(entry.answer.get("stages", []) if self._time_stages else [])]
        entry.samples = {target: [] for target in targets}
        return entry

    def _client(self, backend: str) -> Client | None:
        """The backend's running worker, started if need be; None if the backend is not there."""
        if backend in self._unavailable:
            return None
        client = self._clients.get(backend)
        if client is None or not client.alive:
            client = self._clients[backend] = Client(backend, self._allocator)
            started = client.ask("start")
            if "unavailable" in started:
                self._unavailable[backend] = started["unavailable"]
                client.close()
                return None
            self.workers[backend] = started
        return client

    def _burst(self, case: Case, entry: _Entry) -> None:
        assert entry.client is not None
        for target, samples in entry.samples.items():
            spent = sum(samples) / 1e6
            if len(samples) >= 3 and spent > _PATIENCE * self._seconds:
                continue
            try:
                answer = entry.client.ask("time", target=target, seconds=self._seconds / ROUNDS)
            except WorkerError as error:
                entry.record = _record(case, entry.backend, status="failed", reason=str(error))
                return
            samples += answer["samples_us"]

    def _finish(self, case: Case, entry: _Entry) -> Record:
        samples = entry.samples.pop("all")
        time = Stats.of(samples)
        return _record(
            case,
            entry.backend,
            status="ok",
            ran_on=entry.answer["ran_on"],
            check=entry.answer["check"],
            impls=[f"{p['kind']}:{p['impl']}" for p in entry.answer["hot"]],
            time=time,
            gflops=round(cost(case.problem).flops / time.median_us / 1000, 3),
            stages={name: Stats.of(s) for name, s in entry.samples.items()},
            samples_us=[round(s, 2) for s in samples],
        )


def _record(case: Case, backend: str, **fields: Any) -> Record:
    return Record(
        problem=str(case.problem),
        name=case.name,
        backend=backend,
        threads=case.threads,
        flops=cost(case.problem).flops,
        **fields,
    )
