"""Runs threads that stay on their CPUs and start together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns

import numpy as np


class PinnedThreads:
    """A thread on each of ``cpus``, pinned where the OS allows it; a context manager."""

    def __init__(self, cpus: list[int]) -> None:
        self.cpus = cpus
        self._pool = ThreadPoolExecutor(len(cpus))
        self._barrier = threading.Barrier(len(cpus))

    def __len__(self) -> int:
        return len(self.cpus)

    def __enter__(self) -> PinnedThreads:
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits for one that Ctrl-C kept from starting would be waited for in vain.
        self._barrier.abort()
        self._pool.shutdown()

    def together(self, run: Callable[[int], None]) -> list[float]:
        """Calls run(i) on each thread i, all at once; returns their times in nanoseconds."""

        def timed(i: int) -> float:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {self.cpus[i]})
            self._barrier.wait()
            start = perf_counter_ns()
            run(i)
            return perf_counter_ns() - start

        return list(self._pool.map(timed, range(len(self))))


def aligned_bytes(size: int) -> np.ndarray:
    """Returns ``size`` bytes of 1 that start at a cache line; being written, all are mapped."""
    memory = np.ones(size + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size]
