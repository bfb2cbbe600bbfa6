"""Times layers and calls for the gate, and keeps the figures as a sweep's results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from time import perf_counter_ns
from typing import Any

import torch

from dnnsep.backends import get_backend
from dnnsep.backends.tensors import to_channels_last
from dnnsep.cost import cost
from dnnsep.host.allocator import keep_pages
from dnnsep.host.machine import cpus_for, default_threads, fingerprint
from dnnsep.measure.calibrate import Calibrator
from dnnsep.measure.stats import Round, Stats
from dnnsep.problem import Problem
from dnnsep.report.compare import Comparison, compare, how_to_compare
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.results import Key, Record, Results
from dnnsep.sweep.verbose import onednn_log

WARM_UP, CALLS = 20, 25

# How long a timing waits for the machine to be quiet, in seconds.
_PATIENCE = 1.0

Timer = Callable[[Callable[[], Any]], list[float]]


def timed(run: Callable[[], Any]) -> list[float]:
    """Warms up, and returns how long each of some calls takes, in microseconds."""
    for _ in range(WARM_UP):
        run()
    calls_us = []
    for _ in range(CALLS):
        start = perf_counter_ns()
        run()
        calls_us.append((perf_counter_ns() - start) / 1000)
    return calls_us


class Gate:
    """What the fixture gives: times the same things on each visit, and keeps the figures.

    A ``threshold`` is the least slow-down in % that counts for a case, in place of
    ``--dnnsep-threshold``.
    """

    def __init__(self, session: Session, visit: int) -> None:
        self._session, self._visit = session, visit

    def layer(
        self,
        descriptor: str,
        backend: str = "fused",
        threads: int | None = None,
        *,
        name: str | None = None,
        threshold: float | None = None,
        timer: Timer = timed,
    ) -> Record:
        """Times a layer, ``descriptor`` as of ``dnnsep sweep``, on a backend, after it was compared
        with the reference; returns the figures of this visit.

        ``threads`` is the physical cores where it is not given, ``name`` what the layer is called
        beside its descriptor; ``timer`` warms up and makes the calls.

        Fails the test where the backend is not there, cannot run it, or answers wrongly. Raises
        ValueError where the descriptor is none, or no backend is called so.
        """
        problem, count = Problem.parse(descriptor), threads or default_threads()
        engine = get_backend(backend)
        for verdict in (engine.available(), engine.supports(problem)):
            assert verdict, f"{backend}: {verdict.reason}"
        data = _check_data(problem)
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            executor = engine.prepare(problem, data.weights)
            x = to_channels_last(data.x, problem.dtype)
            executor(x)
            with onednn_log() as log:
                y = executor(x)
            correct, finding = data.verdict(y.float().numpy())
            assert correct, f"{backend} on {problem}: {finding}"
            with torch.no_grad():
                turn = self._session.turn(self._visit, lambda: executor(x), timer)
        finally:
            torch.set_num_threads(before)  # a call that is timed later has its own
        record = _record(str(problem), backend, count, turn, cost(problem).flops)
        roofs = self._session.roofs
        update = {
            "name": name,
            "impls": [f"{primitive.kind}:{primitive.impl}" for primitive in log.primitives],
            "roof": roofs.of(problem, "hot") if roofs.threads == count else None,
        }
        return self._session.keep(record.model_copy(update=update), threshold)

    def call(
        self,
        name: str,
        shape: Sequence[int],
        run: Callable[[], Any],
        engine: str = "mine",
        *,
        threshold: float | None = None,
    ) -> Record:
        """Times ``run()``, say a model of your own on an input of a shape, as case ``name``, on as
        many threads as torch has; returns the figures of this visit. Its answer is yours to check.
        """
        problem = f"{'_'.join(name.split())} {'x'.join(map(str, shape))}"
        with torch.no_grad():
            turn = self._session.turn(self._visit, run, timed)
        record = _record(problem, engine, torch.get_num_threads(), turn, 0)
        return self._session.keep(record, threshold)

    def results(self) -> Results:
        """Returns the figures of all tests so far, as a sweep's results."""
        return self._session.results()


class Session:
    """The figures of a run.

    ``threshold`` is the least slow-down in % that counts where a case has none of its own.
    """

    def __init__(self, threshold: float) -> None:
        keep_pages()  # as in a sweep
        self._calibrator = Calibrator(cpus_for(default_threads()))
        self.roofs = self._calibrator.roofs()
        self._fingerprint = fingerprint()
        self._threshold = threshold
        self._records: dict[Key, Record] = {}
        self._thresholds: dict[Key, float] = {}

    def close(self) -> None:
        """Ends the threads that look after the machine."""
        self._calibrator.close()

    def turn(self, visit: int, run: Callable[[], Any], timer: Timer) -> Round:
        """Waits for a quiet machine and has a timer make its calls, between two controls."""
        before = self._calibrator.quiet_control(self._calibrator.control(), _PATIENCE)
        calls_us = timer(run)
        after = self._calibrator.control()
        return Round(visit=visit, before=before, after=after, calls_us=calls_us)

    def keep(self, record: Record, threshold: float | None) -> Record:
        """Adds a visit's record to those of its case, and returns it."""
        earlier = self._records.get(record.key)
        self._records[record.key] = earlier.joined(record) if earlier else record
        if threshold is not None:
            self._thresholds[record.key] = threshold
        return record

    def results(self) -> Results:
        """Returns the figures as a sweep's results."""
        return Results(
            title="gate",
            fingerprint=self._fingerprint,
            settings={"suite": "pytest"},
            roofs={self.roofs.threads: self.roofs},
            records=list(self._records.values()),
        )

    def compared_with(self, baseline: Results) -> list[Comparison]:
        """Returns the comparison of each case that was measured.

        Raises ValueError where the baseline is another machine's and has no roofs.
        """
        new = self.results()

        def threshold(key: Key) -> float:
            return self._thresholds.get(key, self._threshold) / 100

        how = how_to_compare(baseline, new)
        found = compare(baseline, new, how=how, thresholds=threshold)
        return [comparison for comparison in found if comparison.key in self._records]


def _record(problem: str, backend: str, threads: int, turn: Round, flops: int) -> Record:
    """Returns the record of one visit; ``flops`` of 0 are unknown ones."""
    time = Stats.of([turn])
    return Record(
        problem=problem,
        backend=backend,
        threads=threads,
        status="ok",
        flops=flops,
        time=time,
        gflops=flops / time.median_us / 1000 if flops else None,
        rounds=[turn],
    )


@cache
def _check_data(problem: Problem) -> CheckData:
    return CheckData.exact(problem)
