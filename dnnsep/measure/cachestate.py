"""Cold caches: between two calls, other memory goes through the caches of every core used."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dnnsep.host.caches import caches_of

# How often the memory written fills the last-level cache, and its size where it is not known.
_TIMES_CACHE = 2
_UNKNOWN_CACHE = 64 << 20


class Evictor:
    """Writes twice the last-level cache's bytes, split over the CPUs that the calls use.

    With torch engines on torch's own threads, so that these are awake for the call that follows,
    as they are with hot caches; with others on threads of our own, since torch's would still be
    spinning, and in the way, when the engine's start.
    """

    def __init__(self, cpus: list[int], on_torch_threads: bool) -> None:
        self._cpus = cpus
        self._on_torch_threads = on_torch_threads
        self._buffers: list[np.ndarray] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self) -> None:
        if self._buffers is None:
            self._allocate()
        assert self._buffers is not None
        if self._on_torch_threads:
            self._torch_buffer.add_(1)
        else:
            assert self._pool is not None
            list(self._pool.map(self._write, self._cpus, self._buffers))

    def _allocate(self) -> None:
        caches = caches_of(self._cpus)
        size = _TIMES_CACHE * max(caches.values(), default=_UNKNOWN_CACHE) // 8
        whole = np.zeros(size, np.int64)
        self._buffers = np.array_split(whole, len(self._cpus))
        if self._on_torch_threads:
            import torch

            self._torch_buffer = torch.from_numpy(whole)
        else:
            self._pool = ThreadPoolExecutor(len(self._cpus))

    @staticmethod
    def _write(cpu: int, buffer: np.ndarray) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {cpu})
        buffer += 1
