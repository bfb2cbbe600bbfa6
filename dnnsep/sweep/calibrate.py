"""Measures a machine's roofs, and the fixed loop that shows when the machine itself has changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from time import perf_counter_ns, sleep
from typing import TYPE_CHECKING

import numpy as np

from dnnsep.sweep.machine import caches_of
from dnnsep.sweep.roofs import MemoryLevel, Roofs
from dnnsep.sweep.stats import Control

if TYPE_CHECKING:
    from dnnsep.codegen.jit import Function

# A roof is what the machine can do, so the best of several short slices counts: others on the
# machine can only take from it.
_SLICES = 15
_SLICE_NS = 6e6

# The control: long enough for Python's part in it not to count. Other workers' idle OpenMP threads
# spin for some milliseconds before they sleep.
_CONTROL_OPERATIONS = 1e8
_CONTROL_SLICES = 3
_TURNS = 500
_LINES = 15
_LINE_DISTANCE = 4096 + 64
_SETTLE_SECONDS = 0.005

# Share of a cache that a loop's buffers fill: enough to be beyond the next smaller one, with room
# for whatever else is there.
_FILL = 0.5


class Calibrator:
    """Threads, one pinned to each CPU, that run the same compiled loop at the same time."""

    def __init__(self, cpus: list[int]) -> None:
        self._cpus = cpus
        self._pool = ThreadPoolExecutor(len(cpus))
        self._barrier = threading.Barrier(len(cpus))

    def close(self) -> None:
        self._pool.shutdown()

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def roofs(self) -> Roofs:
        """All roofs, in about three seconds. Raises RuntimeError below AVX2 with FMA."""
        from dnnsep.codegen import loops

        clock = self._clock_ghz()
        dtypes = loops.multiply_add_dtypes()
        fma = {dtype: self._multiply_add(dtype) for dtype in dtypes}
        levels, inner = [], 0
        for name, capacity in caches_of(self._cpus):
            size = int(max(_FILL * capacity, min(1.5 * inner, 0.75 * capacity)))
            levels.append(self._memory(name, capacity, size))
            inner = capacity
        levels.append(self._memory("DRAM", None, 4 * inner or 1 << 28))
        threads = len(self._cpus)
        return Roofs(
            threads=threads,
            clock_ghz=round(clock, 3),
            fma_gflops={dtype: round(rate, 1) for dtype, rate in fma.items()},
            fma_flops_per_cycle={d: round(r / threads / clock, 1) for d, r in fma.items()},
            memory=levels,
        )

    def control(self) -> Control:
        """How the machine does at this moment, in about ten milliseconds."""
        sleep(_SETTLE_SECONDS)
        steps, loop, buffers = self._multiply_adds
        busy = min(
            max(self._together(lambda i: loop(steps, buffers[i].ctypes.data)))
            for _ in range(_CONTROL_SLICES)
        )
        return Control(busy_us=round(busy / 1000, 2), handover_ns=self._handover_ns())

    def _handover_ns(self) -> float | None:
        """The median over cache lines: how far a line's home is from the cores differs."""
        threads = len(self._cpus)
        if threads == 1 or len(set(self._cpus)) < threads:
            return None
        self._tokens[:] = 0
        first = self._tokens.ctypes.data
        times = [
            # The last thread to start has the shortest time, and no waiting for the others in it.
            min(self._pass_on(first + line * _LINE_DISTANCE)) / _TURNS / threads
            for line in range(_LINES)
        ]
        return round(float(np.median(times)), 1)

    def _pass_on(self, address: int) -> list[float]:
        threads = len(self._cpus)
        return self._together(lambda i: self._ring(_TURNS, address, i, threads))

    @cached_property
    def _tokens(self) -> np.ndarray:
        return _aligned(_LINES * _LINE_DISTANCE)

    @cached_property
    def _ring(self) -> Function:
        from dnnsep.codegen import loops

        return loops.token_ring()

    @cached_property
    def _multiply_adds(self) -> tuple[int, Function, list[np.ndarray]]:
        from dnnsep.codegen import loops

        loop = loops.multiply_add_loop("f32")
        # Counted in operations, not in time, so that it is the same work in every sweep.
        steps = int(_CONTROL_OPERATIONS / loops.operations_per_step("f32"))
        return steps, loop, [_vectors() for _ in self._cpus]

    def _clock_ghz(self) -> float:
        from dnnsep.codegen import loops

        loop, steps = loops.multiply_chain(), 20_000
        cycles = steps * loops.MULTIPLIES_PER_STEP * loops.MULTIPLY_LATENCY
        return max(cycles / min(self._together(lambda i: loop(steps))) for _ in range(_SLICES))

    def _multiply_add(self, dtype: str) -> float:
        from dnnsep.codegen import loops

        loop, operations = loops.multiply_add_loop(dtype), loops.operations_per_step(dtype)
        buffers = [_vectors() for _ in self._cpus]
        return self._best(lambda i, steps: loop(steps, buffers[i].ctypes.data), operations)

    def _memory(self, name: str, capacity: int | None, size: int) -> MemoryLevel:
        """Bandwidth of buffers of ``size`` bytes in all, split over the threads."""
        from dnnsep.codegen import loops

        share = size // len(self._cpus)
        read = self._bandwidth(loops.read_loop(), share, 1)
        copy = self._bandwidth(loops.copy_loop(streaming=capacity is None), share // 2, 2)
        return MemoryLevel(
            name=name,
            capacity_bytes=capacity,
            read_gbs=round(read, 1),
            copy_gbs=round(copy, 1),
        )

    def _bandwidth(self, loop: Function, size: int, streams: int) -> float:
        """GB/s in all of a loop over ``streams`` buffers of ``size`` bytes each a thread."""
        from dnnsep.codegen import loops

        step_bytes = loops.VECTORS_PER_STEP * loops.vector_lanes() * 4
        whole = size // step_bytes
        buffers = [[_aligned(whole * step_bytes) for _ in range(2)] for _ in self._cpus]

        addresses = [[b.ctypes.data for b in pair] for pair in buffers]
        return self._best(lambda i, n: loop(n, whole, *addresses[i]), step_bytes * streams)

    def _best(self, run: Callable[[int, int], None], amount: float) -> float:
        """The best slice's amount per nanosecond, summed over the threads; run(i, n) does n."""

        def slice_of(count: int) -> list[float]:
            return self._together(lambda i: run(i, count))

        count = 1
        while (took := max(slice_of(count))) < _SLICE_NS / 4:
            count *= 2
        count = max(1, round(count * _SLICE_NS / took))
        return max(sum(count * amount / t for t in slice_of(count)) for _ in range(_SLICES))

    def _together(self, run: Callable[[int], None]) -> list[float]:
        """Nanoseconds of run(i) on each thread i, all started at once."""

        def one(i: int) -> float:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {self._cpus[i]})
            self._barrier.wait()
            start = perf_counter_ns()
            run(i)
            return perf_counter_ns() - start

        return list(self._pool.map(one, range(len(self._cpus))))


def _vectors() -> np.ndarray:
    """Two operands, 1 and 0, and room for the sums: nothing grows, nothing is denormal."""
    from dnnsep.codegen import loops

    lanes = loops.vector_lanes()
    vectors = np.zeros((2 + loops.CHAINS) * lanes, np.float32)
    vectors[:lanes] = 1
    return vectors


def _aligned(size: int) -> np.ndarray:
    memory = np.ones(size + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size]
