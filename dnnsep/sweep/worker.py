"""The process that runs one backend: reads requests, answers each with one line of JSON.

Run as ``python -m dnnsep.sweep.worker BACKEND keep|system``. A process for each backend keeps a
crash in one engine, or what it does to its process, away from the others and from the sweep.
"""

from __future__ import annotations

import gc
import json
import os
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
from dnnsep.measure.cachestate import Evictor
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.verbose import Log, onednn_log

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

# Long enough for the caches, and for the other workers' idle OpenMP threads, which spin for some
# milliseconds before they sleep; then for as long as the calls are not near the best known.
_WARM_UP_SECONDS = 0.01
_LONGEST_WARM_UP_SECONDS = 0.15
_WARM = 1.1
_WINDOW = 9
_MAX_BURST = 100

# The smallest normal number of both dtypes.
_SMALLEST_NORMAL = 2.0**-126


class Timer:
    """Times calls, by the name of what they run."""

    def __init__(self) -> None:
        gc.disable()
        self.calls: dict[str, Callable[[], Any]] = {}
        self.evict: Evictor | None = None
        self._best: dict[str, float] = {}  # seconds, by target

    def reset(self, cpus: list[int]) -> None:
        """Forget the calls, and use a thread on each of these CPUs for the next."""
        import torch

        self.calls, self._best = {}, {}
        self.evict = None
        gc.collect()  # here, so that it never runs while a call is timed
        _forget_peak_memory()
        torch.set_grad_enabled(False)
        torch.set_num_threads(len(cpus))
        keep_on(cpus)

    def time(self, target: str, seconds: float, cache: str) -> dict[str, Any]:
        """Times of single calls in microseconds, over about so many seconds after a warm-up."""
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
            del y  # freed outside the timed part
        return {"calls_us": calls, "peak_memory_bytes": _peak_memory()}

    def _warm_up(self, target: str) -> None:
        """Call until the last few calls take about as long as the best few ever did."""
        call, latest = self.calls[target], deque[float](maxlen=_WINDOW)
        known = target in self._best
        start = perf_counter()
        while (before := perf_counter()) - start < _LONGEST_WARM_UP_SECONDS:
            call()
            latest.append(perf_counter() - before)
            if len(latest) == _WINDOW:
                median = sorted(latest)[_WINDOW // 2]
                best = self._best[target] = min(median, self._best.get(target, median))
                if known and before - start > _WARM_UP_SECONDS and median <= _WARM * best:
                    return


class Worker(Timer):
    """A backend, and the executor it was last asked to prepare."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self._backend = get_backend(backend)

    def start(self) -> dict[str, Any]:
        """Import the framework and say which versions run here, or why nothing can."""
        available = self._backend.available()
        if not available:
            return {"unavailable": available.reason}
        probe = Problem.parse("mb1ic64oc64ih56kh3ph1")  # small ones torch keeps from oneDNN
        self._backend.supports(probe)
        data = CheckData.exact(probe)
        with onednn_log() as log:
            self._backend.prepare(probe, data.weights).bind(_input(probe, data))()
        return {"reason": available.reason, "onednn": log.versions, "isa": log.isa}

    def prepare(self, problem: str, cpus: list[int], data: str) -> dict[str, Any]:
        """Prepare a problem for a thread on each CPU, check it against the reference, and log what
        ran."""
        self.reset(cpus)
        parsed = Problem.parse(problem)
        verdict = self._backend.supports(parsed)
        if not verdict:
            return {"refused": verdict.reason}
        check = CheckData.load(Path(data))
        x = _input(parsed, check)
        with onednn_log() as setup:
            executor = self._backend.prepare(parsed, check.weights)
        call = executor.bind(x)
        call()  # what is done on the first call only is not the hot path
        with onednn_log() as hot:
            y = call()
        correct, finding = check.verdict(y.float().numpy())
        pinned = keep_on(cpus)  # the threads that the engine has started since
        if correct:
            self.calls = {"all": call, **_stage_calls(executor, x)}
            self.evict = Evictor(cpus, executor.on_torch_threads)
            pin_workers(cpus, call)
        return {
            "correct": correct,
            "check": finding,
            "ran_on": executor.backend,
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
    """Each stage by its name, on the input it gets."""
    calls: dict[str, Callable[[], Any]] = {}
    for stage in executor.stages:
        calls[stage.name] = partial(stage.run, x)
        x = stage.run(x)
    return calls


def _makes_denormals(executor: Executor, x: Tensor, y: Tensor) -> bool:
    """Whether the result, or what passes between the stages, holds denormal numbers: CPUs take
    many times as long for them."""
    tensors = [y]
    for stage in executor.stages:
        x = stage.run(x)
        tensors.append(x)
    return any(bool(((t != 0) & (t.abs() < _SMALLEST_NORMAL)).any()) for t in tensors)


def _primitives(log: Log) -> list[dict[str, Any]]:
    return [{**vars(p), "weights_dims": p.weights_dims} for p in log.primitives]


def _forget_peak_memory() -> None:
    """Start Linux's high-water mark of this process anew, where it may."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_memory() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")),
        None,
    )


def serve(make: Callable[[str], Any]) -> None:
    """Serve requests until the pipe closes, by the methods of what is made of the first argument.

    The answers' pipe is kept apart from stdout.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _, name, allocator = sys.argv
    kept = keep_pages() if allocator == "keep" else False
    worker = make(name)
    for line in sys.stdin:
        request = json.loads(line)
        method = request.pop("do")
        try:
            if method == "start":
                answer = {**worker.start(), "pages_kept": kept}
            else:
                answer = getattr(worker, method)(**request)
        except Exception as error:  # whatever it is, it becomes a row's reason
            text = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {text[0] if text else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(Worker)
