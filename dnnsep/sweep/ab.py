"""Measures two versions of dnnsep against each other, their workers taking turns.

What passes for a change where there is none, and what is done about it:

- The machine drifts: bursts are some milliseconds long and go A B B A …, and only a burst and its
  neighbour are compared (a Pair).
- Others use the cores: controls around each pair show it; the fastest calls of a burst count, since
  what others add is never negative.
- A process, and where its buffers happen to lie, is lucky or not for as long as it lives, by some
  tenths of a percent, at times by more: each visit to a case has workers of its own, started and
  prepared in the other order than on the visit before, and visits, not pairs, are the independent
  observations. So more visits tell more than longer ones.

Both versions get the same descriptor and the same data, and their answers are checked first.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol

import numpy as np

from dnnsep.host.machine import cpus_for
from dnnsep.host.unnamed import unnamed_file
from dnnsep.measure.calibrate import Calibrator
from dnnsep.sweep.case import AnyCase, why_not
from dnnsep.sweep.client import Client, Interpreter, WorkerError
from dnnsep.sweep.pairs import Pair, PairResults, Status, Trial, Visit
from dnnsep.sweep.results import Key
from dnnsep.sweep.session import Interrupts

Side = Literal["base", "new"]
SIDES: tuple[Side, Side] = ("base", "new")

# The length of a burst in seconds, unless fewer than so many calls fit in it.
_BURST = 0.015
_MIN_CALLS = 5

# Which of a burst's calls stands for it: near the fastest, and steadier than the very fastest.
_QUANTILE = 0.05

_MIN_PAIRS = 4

# A visit goes on for at most so many times the pairs wanted while too few of them are quiet, and
# waits so many times its time in all for the machine to become quiet.
_MOST_PAIRS = 2
_WAIT = 3.0

# What an older version says of a descriptor, of a backend's name, or of a model in a dtype, that it
# does not know.
_UNKNOWN_THERE = re.compile(r"ValueError: (descriptor|backend) |ValueError: .* bf16'")


class Observer(Protocol):
    """Who is told how far a run is."""

    def step(self, text: str) -> None:
        """Something is being done now, which the text names."""

    def advance(self) -> None:
        """One visit to one case on one backend is over and saved."""


@dataclass(frozen=True)
class Plan:
    """What is compared: ``seconds`` are those of calls of each version on a visit to a case."""

    cases: Sequence[AnyCase]
    base: Interpreter
    new: Interpreter
    visits: int
    seconds: float

    @property
    def backends(self) -> list[str]:
        """The backends of the cases, each once, in their order."""
        return list(dict.fromkeys(backend for case in self.cases for backend in case.backends))

    @property
    def total(self) -> int:
        """How many visits there are in all."""
        return self.visits * sum(len(case.backends) for case in self.cases)


class _TrialEndError(Exception):
    """A version cannot take part in a trial; ends it with a status and a reason."""

    def __init__(self, status: Status, side: Side, reason: str) -> None:
        super().__init__(f"{side}: {reason}")
        self.status: Status = status


class _Workers:
    """A worker of each version for one backend, started on first use, one after the other."""

    def __init__(self, plan: Plan, backend: str) -> None:
        self._interpreters = {"base": plan.base, "new": plan.new}
        self._backend = backend
        self._clients: dict[Side, Client] = {}

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def ask(self, side: Side, worker: str, method: str, **arguments: Any) -> dict[str, Any]:
        """The answer of a version's worker. Raises _TrialEndError."""
        try:
            client = self._clients.get(side)
            if client is None or not client.alive:
                client = self._start(side, worker)
            return client.ask(method, **arguments)
        except WorkerError as error:
            unknown = _UNKNOWN_THERE.search(str(error))
            raise _TrialEndError("refused" if unknown else "failed", side, str(error)) from None

    def _start(self, side: Side, worker: str) -> Client:
        if side in self._clients:
            self._clients.pop(side).close()
        client = Client(self._backend, worker=worker, interpreter=self._interpreters[side])
        self._clients[side] = client
        started = client.ask("start")
        if "unavailable" in started:
            raise _TrialEndError("refused", side, f"not available: {started['unavailable']}")
        return client


class Run:
    """A plan with the results so far, saved in ``path`` (None: nowhere) after each visit."""

    def __init__(self, plan: Plan, results: PairResults, path: Path | None) -> None:
        self.results = results
        self._plan = plan
        self._path = path
        self._data: dict[str, Path] = {}  # by problem
        self._calibrators: dict[int, Calibrator] = {}
        self._trials: dict[Key, Trial] = {}

    def run(self, observer: Observer) -> bool:
        """Measures the plan into ``results``; returns whether Ctrl-C ended it early."""
        interrupts = Interrupts()
        try:
            with interrupts, ExitStack() as stack:
                self._files = stack
                stack.callback(self._close)
                for visit in range(self._plan.visits):
                    for backend in self._plan.backends:
                        self._visit_all(backend, visit, observer, interrupts)
        except KeyboardInterrupt:
            pass
        return interrupts.seen

    def _close(self) -> None:
        for calibrator in self._calibrators.values():
            calibrator.close()

    def _visit_all(
        self, backend: str, visit: int, observer: Observer, interrupts: Interrupts
    ) -> None:
        """Makes one visit to each case on a backend, with workers of its own."""
        cases = [case for case in self._plan.cases if backend in case.backends]
        random.Random(visit).shuffle(cases)  # what a process did before is not always the same
        with _Workers(self._plan, backend) as workers:
            for case in cases:
                key = case.key(backend)
                trial = self._trials.setdefault(key, _new_trial(case, backend))
                if trial.status == "ok":
                    observer.step(f"{case.problem} {backend} visit {visit + 1}")
                    self._trials[key] = self._visit(case, trial, visit, workers)
                    self._save()
                observer.advance()
                if interrupts.seen:
                    raise KeyboardInterrupt

    def _save(self) -> None:
        """Puts the trials in the plan's order, not the visit's."""
        keys = [case.key(b) for b in self._plan.backends for case in self._plan.cases]
        self.results.trials = [self._trials[key] for key in keys if key in self._trials]
        if self._path is not None:
            self.results.save(self._path)

    def _visit(self, case: AnyCase, trial: Trial, visit: int, workers: _Workers) -> Trial:
        """Returns the trial with one more visit's pairs, or with the reason why there are none."""
        order = SIDES if visit % 2 == 0 else SIDES[::-1]
        if reason := why_not(case, trial.backend):
            return trial.model_copy(update={"status": "refused", "reason": reason})
        try:
            data = self._data_of(case)
        except (MemoryError, OSError) as error:
            reason = f"no reference: {type(error).__name__}: {error}"
            return trial.model_copy(update={"status": "failed", "reason": reason})
        try:
            impls = {side: self._prepare(case, side, data, workers) for side in order}
            pairs = self._pairs(case, order, workers)
        except _TrialEndError as end:
            return trial.model_copy(update={"status": end.status, "reason": str(end)})
        visits = [*trial.visits, Visit(visit=visit, pairs=pairs)]
        changes = {"base_impls": impls["base"], "new_impls": impls["new"], "visits": visits}
        return trial.model_copy(update=changes)

    def _data_of(self, case: AnyCase) -> Path:
        """The problem's data with the reference's answer, made once: it takes long."""
        problem = str(case.problem)
        if problem not in self._data:
            path = self._files.enter_context(unnamed_file())
            case.save_data(path)
            self._data[problem] = path
        return self._data[problem]

    def _prepare(self, case: AnyCase, side: Side, data: Path, workers: _Workers) -> list[str]:
        """Prepare and check a version; returns what runs."""
        arguments = {"problem": str(case.problem), "cpus": cpus_for(case.threads)}
        answer = workers.ask(side, case.worker, "prepare", **arguments, data=str(data))
        if "refused" in answer:
            raise _TrialEndError("refused", side, answer["refused"])
        if not answer["correct"]:
            raise _TrialEndError("incorrect", side, answer["check"])
        impls: list[str] = answer["impls"]
        return impls

    def _pairs(self, case: AnyCase, order: tuple[Side, ...], workers: _Workers) -> list[Pair]:
        """Pairs of bursts until enough of them were quiet, or the patience is over."""
        seconds = max(_burst_seconds(case, side, workers) for side in order)
        if case.threads not in self._calibrators:
            self._calibrators[case.threads] = Calibrator(cpus_for(case.threads))
        calibrator = self._calibrators[case.threads]
        wanted = max(_MIN_PAIRS, 2 * ceil(self._plan.seconds / seconds / 2))
        waiting = _WAIT * self._plan.seconds
        control, pairs, quiet = calibrator.control(), list[Pair](), 0
        while quiet < wanted and len(pairs) < _MOST_PAIRS * wanted:
            start = monotonic()
            before = calibrator.quiet_control(control, waiting)
            waiting -= monotonic() - start
            turn = order if len(pairs) % 2 == 0 else order[::-1]
            calls = {side: _burst(case, side, workers, seconds) for side in turn}
            control = calibrator.control()
            us = {side: round(float(np.quantile(c, _QUANTILE)), 4) for side, c in calls.items()}
            pairs.append(Pair(before=before, after=control, base_us=us["base"], new_us=us["new"]))
            quiet += calibrator.is_quiet(before) and calibrator.is_quiet(control)
        return pairs


def _new_trial(case: AnyCase, backend: str) -> Trial:
    return Trial(
        problem=str(case.problem),
        name=case.name,
        backend=backend,
        threads=case.threads,
        cache=case.cache,
    )


def _burst(case: AnyCase, side: Side, workers: _Workers, seconds: float) -> list[float]:
    """The times in microseconds of a version's calls, one after the other for so long."""
    answer = workers.ask(side, case.worker, "time", target="all", seconds=seconds, cache=case.cache)
    calls: list[float] = answer["calls_us"]
    return calls


def _burst_seconds(case: AnyCase, side: Side, workers: _Workers) -> float:
    """How long bursts are to be: by rehearsals, which also spare the first pair the cold start."""
    _burst(case, side, workers, _BURST)
    start = monotonic()
    calls = _burst(case, side, workers, _BURST)
    # Emptying the caches before each call takes far longer than the call.
    each = monotonic() - start if case.cache == "cold" else sum(calls) / 1e6
    return max(_BURST, _MIN_CALLS * each / len(calls))
