"""Measures the machine itself: its roofs, and controls that show the state it is in now."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from time import monotonic, sleep
from typing import TYPE_CHECKING

import numpy as np

from dnnsep.host import amx
from dnnsep.measure.pinned import PinnedThreads, aligned_bytes
from dnnsep.measure.roofs import Roofs
from dnnsep.measure.stats import Control

if TYPE_CHECKING:
    from dnnsep.codegen.lang.jit import Program

# The loops of a control run so long that Python's overhead does not count.
_CONTROL_OPERATIONS = 1e8
_CONTROL_BYTES = 2.5e8
_CONTROL_SLICES = 3
_L1_BYTES = 24 * 1024
_TURNS = 500
_LINES = 15
_LINE_DISTANCE = 4096 + 64
# Idle OpenMP threads of other workers spin for some milliseconds before they sleep.
_SETTLE_SECONDS = 0.005


class Calibrator:
    """Measures the machine on a thread pinned to each of ``cpus``; a context manager."""

    def __init__(self, cpus: list[int]) -> None:
        amx.refusal()  # the tiles are asked for before threads start
        self._threads = PinnedThreads(cpus)
        self._best: Control | None = None

    def close(self) -> None:
        """Ends the threads."""
        self._threads.__exit__()

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def roofs(self) -> Roofs:
        """Measures all roofs, in two to five seconds.

        Raises RuntimeError where the CPU has neither AVX-512 nor AVX2 with FMA.
        """
        from dnnsep.measure.roofmeter import measured_roofs

        return measured_roofs(self._threads)

    def control(self) -> Control:
        """Measures the state that the machine is in now, in about ten milliseconds.

        Raises RuntimeError where the CPU has neither AVX-512 nor AVX2 with FMA.
        """
        sleep(_SETTLE_SECONDS)
        control = Control(
            busy_us=self._slowest_us(self._multiply_adds),
            loads_us=self._slowest_us(self._loads),
            handover_ns=self._handover_ns(),
        )
        self._best = Control.best([control] if self._best is None else [self._best, control])
        return control

    def is_quiet(self, control: Control) -> bool:
        """Returns whether others left the cores alone, judged by the best control so far."""
        return self._best is None or control.quiet(self._best)

    def quiet_control(self, control: Control, patience: float) -> Control:
        """Measures controls until one is quiet or ``patience`` seconds are over; returns the last.

        A ``control`` that is quiet already is returned as it is.
        """
        end = monotonic() + patience
        while not self.is_quiet(control) and monotonic() < end:
            control = self.control()
        return control

    def _slowest_us(self, run: Callable[[int], None]) -> float:
        """Returns the slowest thread's time in microseconds, in the best of some slices."""
        times = (max(self._threads.together(run)) for _ in range(_CONTROL_SLICES))
        return round(min(times) / 1000, 2)

    def _handover_ns(self) -> float | None:
        """Returns how many nanoseconds a cache line takes from one thread's core to the next one's.

        It is the median over some lines, because they differ in how far from the cores their home
        is; None with one thread or where threads share a CPU.
        """
        threads = len(self._threads)
        if threads == 1 or len(set(self._threads.cpus)) < threads:
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
        """Passes a token round all threads; returns each thread's time in nanoseconds."""
        threads = len(self._threads)
        return self._threads.together(lambda i: self._ring(_TURNS, address, i, threads))

    @cached_property
    def _tokens(self) -> np.ndarray:
        return aligned_bytes(_LINES * _LINE_DISTANCE)

    @cached_property
    def _ring(self) -> Program:
        from dnnsep.measure import loops

        return loops.token_ring()

    # Both loops do a fixed amount of work, so that their times can be compared between sweeps.

    @cached_property
    def _multiply_adds(self) -> Callable[[int], None]:
        from dnnsep.measure import loops
        from dnnsep.measure.roofmeter import operands

        loop, buffers = loops.multiply_add_loop("f32"), [operands() for _ in self._threads.cpus]
        steps = int(_CONTROL_OPERATIONS / loops.operations_per_step("f32"))
        return lambda i: loop(steps, buffers[i].ctypes.data)

    @cached_property
    def _loads(self) -> Callable[[int], None]:
        from dnnsep.measure import loops

        loop, step_bytes = loops.read_loop(), loops.bytes_per_step()
        steps, whole = int(_CONTROL_BYTES / step_bytes), _L1_BYTES // step_bytes
        addresses = [buffer.ctypes.data for buffer in self._load_buffers]
        return lambda i: loop(steps, whole, addresses[i], addresses[i])

    @cached_property
    def _load_buffers(self) -> list[np.ndarray]:
        return [aligned_bytes(_L1_BYTES) for _ in self._threads.cpus]
