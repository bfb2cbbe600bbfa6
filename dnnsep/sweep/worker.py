"""Runs one backend in a process that reads requests and answers each with a line of JSON.

Run as ``python -m dnnsep.sweep.worker BACKEND keep|system``: with ``keep`` the allocator keeps
freed memory. A process for each backend keeps a crash in one engine, or changes that an engine
makes to its process, away from the others and from the sweep.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

from dnnsep.backends import get_backend
from dnnsep.host.affinity import keep_on, pin_workers
from dnnsep.host.allocator import keep_pages
from dnnsep.host.parent import end_with_parent
from dnnsep.measure.cachestate import Evictor
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.verbose import Log, onednn_log

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

# The warm-up is long enough for the caches, and for the other workers' idle OpenMP threads, which
# spin for some milliseconds before they sleep. It goes on while the latest calls take longer than
# the best known by the ratio.
_WARM_UP_SECONDS = 0.01
_LONGEST_WARM_UP_SECONDS = 0.15
_WARM_RATIO = 1.1
_LATEST_CALLS = 9
_MAX_BURST = 100

# What a worker starts with: torch does not give smaller ones to oneDNN.
_PROBE = Problem.parse("mb1ic64oc64ih56kh3ph1")

# The smallest normal number of f32 and of bf16.
_SMALLEST_NORMAL = 2.0**-126


class Timer:
    """Times calls, each under the name of its target: ``all``, or a stage.

    Garbage is collected between problems only, never while a call is timed.
    """

    def __init__(self) -> None:
        gc.disable()
        self.calls: dict[str, Callable[[], Any]] = {}
        self.evict: Evictor | None = None
        self._best: dict[str, float] = {}  # seconds, by target

    def load(self) -> dict[str, Any]:
        """Imports what ``start`` and ``prepare`` need, which several workers can do at once."""
        with contextlib.suppress(ImportError):  # start says what is missing
            import torch  # noqa: F401
        return {}

    def reset(self, cpus: list[int]) -> None:
        """Forgets the calls, and lets the next ones use a thread on each of these CPUs."""
        import torch

        self.calls, self._best = {}, {}
        self.evict = None
        gc.collect()  # here, so that it never runs while a call is timed
        _forget_peak_memory()
        torch.set_grad_enabled(False)
        torch.set_num_threads(len(cpus))
        keep_on(cpus)

    def time(self, target: str, seconds: float, cache: str) -> dict[str, Any]:
        """Times 1 to 100 single calls, for about so many seconds after a warm-up.

        Returns the times in microseconds and the process's peak memory. ``cache`` is ``hot`` or
        ``cold``. Raises KeyError for an unknown target.
        """
        call = self.calls[target]
        assert self.evict is not None
        evict = self.evict if cache == "cold" else None
        self._warm_up(target)
        calls: list[float] = []
        end = perf_counter() + seconds
        while not calls or (perf_counter() < end and len(calls) < _MAX_BURST):
            if evict is not None:
                evict()
            start = perf_counter_ns()
            y = call()
            calls.append(round((perf_counter_ns() - start) / 1000, 2))
            del y  # so that it is freed outside of the timed span
        return {"calls_us": calls, "peak_memory_bytes": _peak_memory()}

    def _warm_up(self, target: str) -> None:
        """Calls until the latest calls take about as long as the best calls ever did."""
        call, latest = self.calls[target], deque[float](maxlen=_LATEST_CALLS)
        known = target in self._best
        start = perf_counter()
        while (before := perf_counter()) - start < _LONGEST_WARM_UP_SECONDS:
            call()
            latest.append(perf_counter() - before)
            if len(latest) == _LATEST_CALLS:
                median = sorted(latest)[_LATEST_CALLS // 2]
                best = self._best[target] = min(median, self._best.get(target, median))
                if known and before - start > _WARM_UP_SECONDS and median <= _WARM_RATIO * best:
                    return


class Worker(Timer):
    """A backend, and the calls of the problem that it prepared last."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self._backend = get_backend(backend)

    def load(self) -> dict[str, Any]:
        """Imports torch and the backend's framework, where they are there."""
        if self._backend.available():
            self._backend.supports(_PROBE)
        return super().load()

    def start(self) -> dict[str, Any]:
        """Imports the framework and runs a small problem.

        Returns which versions of oneDNN run here, or under ``unavailable`` why nothing does.
        """
        available = self._backend.available()
        if not available:
            return {"unavailable": available.reason}
        self._backend.supports(_PROBE)
        data = CheckData.exact(_PROBE)
        with onednn_log() as log:
            self._backend.prepare(_PROBE, data.weights).bind(_input(_PROBE, data))()
        return {"reason": available.reason, "onednn": log.versions, "isa": log.isa}

    def prepare(self, problem: str, cpus: list[int], data: str) -> dict[str, Any]:
        """Prepares a problem for a thread on each CPU, checks its result and logs what ran.

        ``data`` is the path of a saved CheckData. Returns the findings, or under ``refused`` why
        the backend does not run the problem. A problem whose result is wrong cannot be timed.
        """
        self.reset(cpus)
        parsed = Problem.parse(problem)
        verdict = self._backend.supports(parsed)
        if not verdict:
            return {"refused": verdict.reason}
        check = CheckData.load(Path(data))
        x = _input(parsed, check)
        if self._backend.name == "auto":  # it compares engines, which it does not beside a log
            self._backend.prepare(parsed, check.weights)
        with onednn_log() as setup:
            executor = self._backend.prepare(parsed, check.weights)
        call = executor.bind(x)
        call()  # work that only the first call does is not in the hot path
        with onednn_log() as hot:
            y = call()
        correct, reason = check.verdict(y.float().numpy())
        pinned = keep_on(cpus)  # also threads that the engine has started since
        if correct:
            self.calls = {"all": call, **_stage_calls(executor, x)}
            self.evict = Evictor(cpus, executor.on_torch_threads)
            pin_workers(cpus, call)
        return {
            "correct": correct,
            "check": reason,
            "ran_on": executor.backend,
            "why": executor.why,
            "stages": [stage.name for stage in executor.stages],
            "impls": list(executor.impls) or [f"{p.kind}:{p.impl}" for p in hot.primitives],
            "plans": executor.plans(),
            "output": executor.output,
            "cpus": cpus if pinned else None,
            "denormals": correct and _makes_denormals(executor, x, y),
            "setup": _primitives(setup),
            "hot": _primitives(hot),
        }


def _input(problem: Problem, check: CheckData) -> Tensor:
    from dnnsep.backends.tensors import to_channels_last

    return to_channels_last(check.x, problem.dtype)


def _stage_calls(executor: Executor, x: Any) -> dict[str, Callable[[], Any]]:
    """Returns the call of each stage by its name, on the input that it gets."""
    calls: dict[str, Callable[[], Any]] = {}
    for stage in executor.stages:
        calls[stage.name] = partial(stage.run, x)
        x = stage.run(x)
    return calls


def _makes_denormals(executor: Executor, x: Tensor, y: Tensor) -> bool:
    """Returns whether the result, or a tensor between stages, holds denormal numbers.

    CPUs take many times as long for them.
    """
    tensors = [y]
    for stage in executor.stages:
        x = stage.run(x)
        tensors.append(x)
    return any(bool(((t != 0) & (t.abs() < _SMALLEST_NORMAL)).any()) for t in tensors)


def _primitives(log: Log) -> list[dict[str, Any]]:
    """Returns the primitives of a log as dicts that can be written as JSON."""
    return [{**vars(p), "weights_dims": p.weights_dims} for p in log.primitives]


def _forget_peak_memory() -> None:
    """Resets Linux's high-water mark of this process's memory, where that is allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_memory() -> int | None:
    """Returns the most bytes that this process held since the reset; None where it is unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")),
        None,
    )


def serve(make: Callable[[str], Any]) -> None:
    """Answers the requests on stdin until it closes, or the sweep is killed.

    The process's arguments are a name, of which ``make`` makes a worker, and ``keep`` or
    ``system``. A request names a method of the worker under ``do``; an exception becomes an answer
    with ``error``. Answers go to what was stdout; what others print to stdout goes to stderr.
    """
    end_with_parent(sys.stdin.fileno())
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an exception would count as the backend's
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _, name, allocator = sys.argv
    pages_kept = keep_pages() if allocator == "keep" else False
    worker = make(name)
    for line in sys.stdin:
        request = json.loads(line)
        method = request.pop("do")
        try:
            if method == "start":
                answer = {**worker.start(), "pages_kept": pages_kept}
            else:
                answer = getattr(worker, method)(**request)
        except Exception as error:  # any error becomes the reason in a record
            text = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {text[0] if text else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(Worker)
