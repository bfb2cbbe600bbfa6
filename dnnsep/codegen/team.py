"""The threads that calls of programs share their work with: torch's own, which are OpenMP's."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen.shared import Cores, Job, Queue, QueuedPart
from dnnsep.codegen.workcode import run_function
from dnnsep.host.quota import quota

_LINE = 64
_NONE = -1

# Any of these has GNU's entry points.
_LIBRARIES = ("libgomp", "libiomp5", "libomp")

# Parts of steps that one thread does in order: of each the address of its step's Entry, and the
# part's number.
Chain = Sequence[tuple[int, int]]
# What may be done at the same time.
Phase = Sequence[Chain]


class Work:
    """Phases of chains of parts, each after all of the one before it, as threads find them. One
    call runs at a time."""

    def __init__(
        self, phases: Sequence[Phase], threads: int, scratch: int = 0, thread_bytes: int = 0
    ) -> None:
        """``threads`` is how many can work on it at once, the caller's among them; each has so many
        bytes of scratch memory, from an address on."""
        queues: list[list[tuple[int, int, Chain]]] = [[] for _ in range(threads)]
        limits, done = [], 0
        for number, phase in enumerate(phases):
            done += len(phase)
            most = max(threads, len(phase))
            for at, chain in enumerate(phase):
                # Neighbouring parts go to one thread, and the same shares of each phase.
                queues[at * threads // most].append((number, done, chain))
            limits.append(list(map(len, queues)))
        self._parts = [_rows(queue) for queue in queues]
        self._starts = np.array([parts.ctypes.data for parts in self._parts], np.int64)
        self._limits = np.array(limits, np.int64)
        self._memory = _lines(ctypes.sizeof(Job) + threads * ctypes.sizeof(Queue))
        self._job = _first_line(self._memory)
        job = Job.from_address(self._job)
        job.parts, job.limits = self._starts.ctypes.data, self._limits.ctypes.data
        job.phases, job.queues = len(phases), threads
        job.scratch, job.thread_bytes = scratch, thread_bytes
        self._most = threads
        self._run, self._cores = run_function(), cores().address

    def move_scratch(self, scratch: int) -> None:
        """Sets the address of the scratch memory; no call may be running."""
        Job.from_address(self._job).scratch = scratch

    def run(self) -> None:
        """Does all parts, on this thread and on others as far as there are cores for them."""
        self._run(self._job, self._cores, size(self._most))


def _rows(queue: Sequence[tuple[int, int, Chain]]) -> NDArray[np.int64]:
    """Returns QueuedParts, which are fields of 8 bytes, in memory: the first of each chain, which
    comes with the number of its phase and how many chains are done when that is, and then the
    others."""
    rows: list[tuple[int, ...]] = []
    others: list[tuple[int, ...]] = []
    for phase, done, chain in queue:
        first, *more = chain
        next_one = len(queue) + len(others)
        rows.append((*first, phase, done, next_one if more else _NONE))
        for at, link in enumerate(more, 1):
            others.append((*link, phase, done, next_one + at if at < len(more) else _NONE))
    # A thousand are made at once.
    made = np.array(rows + others, np.int64).reshape(-1, len(QueuedPart._fields_))
    following = made[:, -1]
    following[:] = np.where(following == _NONE, 0, made.ctypes.data + following * made.strides[0])
    return made


def size(most: int) -> int:
    """Returns how many threads a team of so many at most has if the caller makes one now: those
    that torch.set_num_threads allows, and in a forked process one. A fork copies the memory of
    OpenMP and not its threads, which a larger team would wait for."""
    return 1 if _is_forked else min(most, _torch_threads()())


class _OfProcess:
    """The Cores of this process."""

    def __init__(self) -> None:
        self._memory = _lines(ctypes.sizeof(Cores))
        self.address = _first_line(self._memory)
        self.values = Cores.from_address(self.address)
        library = openmp()
        self.values.parallel = _address_of(library.GOMP_parallel)
        self.values.number = _address_of(library.omp_get_thread_num)
        self.values.count = _address_of(library.omp_get_num_threads)
        self.start_anew()

    def start_anew(self) -> None:
        """Forgets what calls were running and how long they waited."""
        for name in ("callers", "until", "time", "well", "wall", "lost"):
            setattr(self.values, name, 0)
        # OpenMP looked at what this process may use before it bound this thread to one of them, as
        # OMP_PROC_BIND and GOMP_CPU_AFFINITY have it do.
        self.values.cpus = max(1, min(openmp().omp_get_num_procs(), _whole(quota())))


@cache
def cores() -> _OfProcess:
    """Returns what all calls of this process share."""
    return _OfProcess()


@cache
def openmp() -> ctypes.CDLL:
    """Returns the OpenMP library that torch has loaded. Raises RuntimeError where there is none."""
    import torch  # noqa: F401  (loads it)

    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if path and Path(path).name.startswith(_LIBRARIES):
            library = ctypes.CDLL(f"/{path}")
            if hasattr(library, "GOMP_parallel"):
                return library
    raise RuntimeError("torch has loaded no OpenMP library")


@cache
def _torch_threads() -> Callable[[], int]:
    import torch

    return torch.get_num_threads


def _address_of(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def _whole(cpus: float) -> int:
    """Returns so many CPUs' worth of time as CPUs, any number where it is not limited."""
    return math.ceil(cpus) if cpus < math.inf else 1 << 20


def _lines(size: int) -> NDArray[np.uint8]:
    return np.zeros(size + _LINE, np.uint8)


def _first_line(memory: NDArray[np.uint8]) -> int:
    return memory.ctypes.data + -memory.ctypes.data % _LINE


_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True
    if cores.cache_info().currsize:
        cores().start_anew()


os.register_at_fork(after_in_child=_note_fork)
