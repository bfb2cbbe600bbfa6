"""Makes caches cold: writes other memory through the caches of every core that calls use."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dnnsep.host.caches import caches_of

# How often the memory written fills the last-level cache, and the size in bytes taken for that
# cache where the system does not say.
_TIMES_CACHE = 2
_DEFAULT_CACHE_BYTES = 64 << 20


class Evictor:
    """Writes twice the last-level cache's bytes each time it is called, split over the CPUs.

    With ``on_torch_threads`` torch's own threads write, so that they are awake for the engine call
    that follows, as they are with hot caches. Engines with other threads need it False: threads of
    this class write then, since torch's would still be spinning when the engine's start. The
    memory is allocated by the first call.
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
        numbers = _TIMES_CACHE * max(caches.values(), default=_DEFAULT_CACHE_BYTES) // 8
        whole = np.zeros(numbers, np.int64)
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
