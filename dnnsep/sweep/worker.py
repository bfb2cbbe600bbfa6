"""The process that runs one backend: reads requests, answers each with one line of JSON.

Run as ``python -m dnnsep.sweep.worker BACKEND keep|system``. A process for each backend keeps a
crash in one engine, or what it does to its process, away from the others and from the sweep.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

from dnnsep.allocator import keep_pages
from dnnsep.backends import get_backend
from dnnsep.backends.base import Backend
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.verbose import Log, onednn_log

if TYPE_CHECKING:
    from dnnsep.backends.executor import Executor

# Long enough for the caches, and for the other workers' idle OpenMP threads, which spin for some
# milliseconds before they sleep.
_WARM_UP_SECONDS = 0.01
_MAX_BURST = 100


class Worker:
    """A backend, and the executor it was last asked to prepare."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        gc.disable()
        self._calls: dict[str, Callable[[], Any]] = {}

    def start(self) -> dict[str, Any]:
        """Import the framework and say which versions run here, or why nothing can."""
        available = self._backend.available()
        if not available:
            return {"unavailable": available.reason}
        probe = Problem.parse("mb1ic64oc64ih56kh3ph1")  # small ones torch keeps from oneDNN
        self._backend.supports(probe)
        with onednn_log() as log:
            executor = self._backend.prepare(probe, CheckData.exact(probe).weights)
            self._run_once(executor, CheckData.exact(probe))
        return {"reason": available.reason, "onednn": log.versions, "isa": log.isa}

    def prepare(self, problem: str, threads: int, data: str) -> dict[str, Any]:
        """Prepare a problem, check it against the reference, and log what ran."""
        import torch

        from dnnsep.backends.tensors import to_channels_last

        self._calls = {}
        gc.collect()  # here, so that it never runs while a call is timed
        torch.set_grad_enabled(False)
        torch.set_num_threads(threads)
        parsed = Problem.parse(problem)
        verdict = self._backend.supports(parsed)
        if not verdict:
            return {"refused": verdict.reason}
        check = CheckData.load(Path(data))
        with onednn_log() as setup:
            executor = self._backend.prepare(parsed, check.weights)
        self._run_once(executor, check)  # what is done on the first call only is not the hot path
        with onednn_log() as hot:
            y = self._run_once(executor, check)
        correct, finding = check.verdict(y.float().numpy())
        x = to_channels_last(check.x, parsed.dtype)
        if correct:
            self._calls = _calls(executor, x)
        return {
            "correct": correct,
            "check": finding,
            "ran_on": executor.backend,
            "stages": [stage.name for stage in executor.stages],
            "setup": _primitives(setup),
            "hot": _primitives(hot),
        }

    def time(self, target: str, seconds: float) -> dict[str, Any]:
        """Times of single calls in microseconds, over about so many seconds after a warm-up."""
        call = self._calls[target]
        end = perf_counter() + _WARM_UP_SECONDS
        call()
        while perf_counter() < end:
            call()
        samples: list[float] = []
        end = perf_counter() + seconds
        while not samples or (perf_counter() < end and len(samples) < _MAX_BURST):
            start = perf_counter_ns()
            y = call()
            samples.append((perf_counter_ns() - start) / 1000)
            del y  # freed outside the timed part
        return {"samples_us": samples}

    @staticmethod
    def _run_once(executor: Executor, check: CheckData) -> Any:
        from dnnsep.backends.tensors import to_channels_last

        return executor(to_channels_last(check.x, executor.problem.dtype))


def _calls(executor: Executor, x: Any) -> dict[str, Callable[[], Any]]:
    """The whole executor as ``all``, and each stage by its name on the input it gets."""
    calls: dict[str, Callable[[], Any]] = {"all": partial(executor, x)}
    for stage in executor.stages:
        calls[stage.name] = partial(stage.run, x)
        x = stage.run(x)
    return calls


def _primitives(log: Log) -> list[dict[str, Any]]:
    return [{**vars(p), "weights_dims": p.weights_dims} for p in log.primitives]


def main() -> None:
    """Serve requests until the pipe closes. The answers' pipe is kept apart from stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _, backend, allocator = sys.argv
    kept = keep_pages() if allocator == "keep" else False
    worker = Worker(get_backend(backend))
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
    main()
