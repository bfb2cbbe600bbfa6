"""Makes specialised kernels beside everything else: by one process of the lowest priority.

Writing a kernel takes Python, which would hold up the callers of a model in this process; so
another one writes and compiles it, and a thread here waits for what it sends. ``python -m
dnnsep.codegen.background`` is that process: it reads what to make from its standard input.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

import dnnsep
from dnnsep.codegen import kernel
from dnnsep.codegen.choose import choose
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.generalstep import GeneralStep
from dnnsep.codegen.kernel import Specialization
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.specialise import (
    as_specialised,
    is_known_close,
    may_be_specialised,
    question_of,
)
from dnnsep.codegen.tuner import Question

# The process ends when nothing was asked of it for so many seconds.
_IDLE_SECONDS = 10.0

# What it answers: a plan with its kernel's machine code, or None where the general kernel will do.
_Answer = tuple[Plan, bytes] | None


@dataclass(frozen=True)
class Job:
    """Layers to make kernels for, if they are still ``wanted`` then, and what is done with them:
    those that have none are None."""

    steps: Sequence[GeneralStep | None]
    wanted: Callable[[], bool]
    done: Callable[[Sequence[LayerStep | None]], None]


_jobs: SimpleQueue[Job] = SimpleQueue()
_lock = threading.Lock()
_thread: list[threading.Thread] = []


def submit(job: Job) -> None:
    """Has kernels made; ``job.done`` is called by another thread when all of them are ready. It is
    not where they cannot be made."""
    with _lock:
        _jobs.put(job)
        if not _thread or not _thread[0].is_alive():
            _thread[:] = [threading.Thread(target=_serve, name="dnnsep-kernels", daemon=True)]
            _thread[0].start()


def _serve() -> None:
    """Passes jobs on until none has come for a while."""
    with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
        process = _process()
        stop = atexit.register(process.kill)
        try:
            while True:
                try:
                    job = _jobs.get(timeout=_IDLE_SECONDS)
                except Empty:
                    with _lock:
                        if _jobs.empty():
                            _thread.clear()
                            return
                    continue
                if job.wanted():
                    job.done([_made(step, process) for step in job.steps])
        finally:
            atexit.unregister(stop)
            process.kill()
            process.wait()


def _process() -> subprocess.Popen[bytes]:
    """Starts the process that makes kernels."""
    package = str(Path(dnnsep.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "dnnsep.codegen.background"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )


def _made(step: GeneralStep | None, process: subprocess.Popen[bytes]) -> LayerStep | None:
    """Has a layer's kernel made, and returns the layer by it; None where it stays as it is."""
    if step is None or not may_be_specialised(step):
        return None
    assert process.stdin is not None
    assert process.stdout is not None
    pickle.dump((question_of(step), step.general.extras), process.stdin)
    process.stdin.flush()
    answer: _Answer = pickle.load(process.stdout)
    if answer is None:
        return None
    plan, code = answer
    found = as_specialised(step, plan)
    if found is not None:
        kernel.adopt(found.special, code)
        _ = found.kernel
    return found


def _answer(question: Question, extras: Extras) -> _Answer:
    if is_known_close(question):
        return None
    plan = choose(question.problem, question.isa, question.threads, question.extras)
    return plan, kernel.code_of(Specialization.of(question.problem, plan, extras))


def _main(asked: IO[bytes], answers: IO[bytes]) -> None:
    with contextlib.suppress(AttributeError, OSError):
        os.nice(19)
    while True:
        try:
            question, extras = pickle.load(asked)
        except EOFError:
            return
        pickle.dump(_answer(question, extras), answers)
        answers.flush()


if __name__ == "__main__":
    _main(sys.stdin.buffer, sys.stdout.buffer)
