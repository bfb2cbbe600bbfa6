"""Measures a machine's roofs: the most that its vector and tile units and its memories can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from dnnsep.codegen.lang.tiles import ROW_BYTES, ROWS, TILES, TileShape, configuration
from dnnsep.host.caches import caches_of
from dnnsep.measure import loops
from dnnsep.measure.pinned import PinnedThreads, aligned_bytes
from dnnsep.measure.roofs import MemoryLevel, Roofs

# A roof is what the machine can do, so the best of many short slices counts: others on the machine
# can only take from it. Slices are spread over two seconds, all loops in turn, because a shared
# machine can be slower for part of a second. Passes begin until the seconds are over.
_SECONDS = 2.0
_FEWEST_PASSES = 2
_SLICES = 3
# A slice takes so long, or up to twice as long.
_SLICE_NS = 2.5e6

# Share of a cache that a loop's buffers fill: enough to be beyond the next smaller one, with room
# for whatever else is there.
_FILL = 0.5

# How many times the last cache the buffers in DRAM have: four times where that is little, since a
# large last cache makes touching its memory take longer than all the rest.
_BEYOND, _LEAST_BEYOND, _LITTLE = 4, 1.5, 256 << 20


def measured_roofs(threads: PinnedThreads) -> Roofs:
    """Measures all roofs of these threads, in two to five seconds.

    Raises RuntimeError where the CPU has neither AVX-512 nor AVX2 with FMA.
    """
    end = monotonic() + _SECONDS
    clock = _Clock(threads)
    fma = {dtype: _multiply_adds(threads, dtype) for dtype in loops.multiply_add_dtypes()}
    tile = {dtype: _tile_products(threads, dtype) for dtype in loops.tile_dtypes()}
    memory = list(_memory_levels(threads))
    meters: list[_Clock | _Meter] = [clock, *fma.values(), *tile.values()]
    meters += [meter for _, _, read, copy in memory for meter in (read, copy)]
    passes = 0
    while passes < _FEWEST_PASSES or monotonic() < end:
        for meter in meters:
            meter.measure()
        passes += 1
    return Roofs(
        threads=len(threads),
        clock_ghz=round(clock.best, 3),
        fma_gflops={dtype: round(meter.best, 1) for dtype, meter in fma.items()},
        fma_flops_per_cycle={
            dtype: round(meter.best / len(threads) / clock.best, 1) for dtype, meter in fma.items()
        },
        tile_gflops={dtype: round(meter.best, 1) for dtype, meter in tile.items()},
        memory=[
            MemoryLevel(
                name=name,
                capacity_bytes=capacity,
                read_gbs=round(read.best, 1),
                copy_gbs=round(copy.best, 1),
            )
            for name, capacity, read, copy in memory
        ],
    )


@dataclass
class _Meter:
    """The rate of a loop on all threads together.

    ``run(i, n)`` does n steps on thread i, each worth ``amount`` (operations or bytes). ``best`` is
    the highest rate of a slice so far, in amounts a nanosecond.
    """

    threads: PinnedThreads
    run: Callable[[int, int], None]
    amount: float
    best: float = 0.0
    _steps: int = field(default=1, init=False)

    def measure(self) -> None:
        """Runs some slices and keeps the best rate.

        Slices that are too short do not count, for starting the loop takes its part of them, and
        they may find all their data in a cache. The steps grow whenever there is one: a thread that
        had to wait for its CPU makes a few steps look like enough.
        """
        counted = 0
        while counted < _SLICES:
            times = self._slice()
            if min(times) < _SLICE_NS:
                self._steps *= 2
                continue
            counted += 1
            self.best = max(self.best, sum(self._steps * self.amount / time for time in times))

    def _slice(self) -> list[float]:
        """Runs a slice's steps on each thread; returns the threads' times in nanoseconds."""
        return self.threads.together(lambda i: self.run(i, self._steps))


class _Clock:
    """The clock rate, from multiplies that wait for each other and whose latency is known.

    ``best`` is the highest rate so far in GHz.
    """

    def __init__(self, threads: PinnedThreads) -> None:
        self._threads = threads
        self._multiplies = loops.multiply_chain()
        self.best = 0.0

    def measure(self) -> None:
        """Runs some slices and keeps the best rate."""
        steps = 20_000
        cycles = steps * loops.MULTIPLIES_PER_STEP * loops.MULTIPLY_LATENCY
        for _ in range(_SLICES):
            times = self._threads.together(lambda i: self._multiplies(steps))
            self.best = max(self.best, cycles / min(times))


def operands() -> np.ndarray:
    """Returns the vectors that ``multiply_add_loop`` works on, as f32 (14 · lanes,).

    The operands are 1 and 0 and the sums 0, so that nothing grows or becomes denormal.
    """
    lanes = loops.vector_lanes()
    vectors = np.zeros((2 + loops.SUMS) * lanes, np.float32)
    vectors[:lanes] = 1
    return vectors


def _multiply_adds(threads: PinnedThreads, dtype: str) -> _Meter:
    loop, buffers = loops.multiply_add_loop(dtype), [operands() for _ in threads.cpus]
    return _Meter(
        threads,
        lambda i, steps: loop(steps, buffers[i].ctypes.data),
        loops.operations_per_step(dtype),
    )


def _tile_products(threads: PinnedThreads, dtype: str) -> _Meter:
    loop, shapes = loops.tile_loop(dtype), tile_configuration()
    operand = aligned_bytes(ROWS * ROW_BYTES)
    operand[:] = 0x3F  # 63 in int8 and 0.75 in bf16, whose sums end far below infinity
    return _Meter(
        threads,
        lambda i, steps: loop(steps, shapes.ctypes.data, operand.ctypes.data),
        loops.tile_operations_per_step(dtype),
    )


def tile_configuration() -> np.ndarray:
    """Returns the 64 bytes that make eight whole tiles, as LDTILECFG reads them."""
    content = configuration([TileShape(ROWS, ROW_BYTES)] * TILES)
    memory = aligned_bytes(len(content))
    memory[:] = content
    return memory


def _memory_levels(
    threads: PinnedThreads,
) -> list[tuple[str, int | None, _Meter, _Meter]]:
    """Returns the name, the bytes and the meters of reading and of copying of each level.

    The innermost level comes first. The first-level cache is left out, and DRAM, whose bytes are
    None, comes last.
    """
    levels: list[tuple[str, int | None, _Meter, _Meter]] = []
    inner = 0
    for level, capacity in caches_of(threads.cpus).items():
        if level == 1:
            continue
        size = int(max(_FILL * capacity, min(1.5 * inner, 0.75 * capacity)))
        levels.append((f"L{level}", capacity, *_read_and_copy(threads, size, streaming=False)))
        inner = capacity
    beyond = min(_BEYOND * inner, max(int(_LEAST_BEYOND * inner), _LITTLE)) or _LITTLE
    return [*levels, ("DRAM", None, *_read_and_copy(threads, beyond, streaming=True))]


def _read_and_copy(threads: PinnedThreads, size: int, streaming: bool) -> tuple[_Meter, _Meter]:
    """Returns meters of reading and of copying, in GB/s.

    Each goes over ``size`` bytes in all, split over the threads: reading over all of them, copying
    from one half to the other.
    """
    step_bytes = loops.bytes_per_step()
    half = size // len(threads) // 2 // step_bytes
    halves = half * step_bytes
    buffers: list[np.ndarray] = [np.empty(0, np.uint8)] * len(threads)

    def touch(i: int) -> None:
        # By the thread that uses it, so that it is in the memory near its core.
        buffers[i] = aligned_bytes(2 * halves + step_bytes)

    threads.together(touch)
    starts = [buffer.ctypes.data for buffer in buffers]
    read_loop, copy_loop = loops.read_loop(), loops.copy_loop(streaming)

    def read(i: int, steps: int) -> None:
        read_loop(steps, 2 * half, starts[i], buffers[i][2 * halves :].ctypes.data)

    def copy(i: int, steps: int) -> None:
        copy_loop(steps, half, starts[i], starts[i] + halves)

    return _Meter(threads, read, step_bytes), _Meter(threads, copy, 2 * step_bytes)
