"""What is measured of the machine itself: its roofs, and the control that shows how it does now."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from time import monotonic, sleep
from typing import TYPE_CHECKING

import numpy as np

from dnnsep.measure.pinned import PinnedThreads, aligned_bytes
from dnnsep.measure.roofs import Roofs
from dnnsep.measure.stats import Control

if TYPE_CHECKING:
    from dnnsep.codegen.lang.jit import Program

# The control: long enough for Python's part in it not to count. Other workers' idle OpenMP threads
# spin for some milliseconds before they sleep.
_CONTROL_OPERATIONS = 1e8
_CONTROL_BYTES = 2.5e8
_CONTROL_SLICES = 3
_L1_BYTES = 24 * 1024
_TURNS = 500
_LINES = 15
_LINE_DISTANCE = 4096 + 64
_SETTLE_SECONDS = 0.005


class Calibrator:
    """Measures the machine on a thread pinned to each of ``cpus``. Use as a context manager."""

    def __init__(self, cpus: list[int]) -> None:
        self._threads = PinnedThreads(cpus)
        self._best: Control | None = None

    def close(self) -> None:
        self._threads.__exit__()

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def roofs(self) -> Roofs:
        """All roofs, in about four seconds. Raises RuntimeError below AVX2 with FMA."""
        from dnnsep.measure.roofmeter import measured_roofs

        return measured_roofs(self._threads)

    def control(self) -> Control:
        """How the machine does at this moment, in about ten milliseconds."""
        sleep(_SETTLE_SECONDS)
        found = Control(
            busy_us=self._slowest_us(self._multiply_adds),
            loads_us=self._slowest_us(self._loads),
            handover_ns=self._handover_ns(),
        )
        self._best = Control.best([found] if self._best is None else [self._best, found])
        return found

    def is_quiet(self, control: Control) -> bool:
        """As far as the best so far shows."""
        return self._best is None or control.quiet(self._best)

    def quiet_control(self, control: Control, patience: float) -> Control:
        """A control like the given one: the first that is quiet, or the last in ``patience``
        seconds."""
        end = monotonic() + patience
        while not self.is_quiet(control) and monotonic() < end:
            control = self.control()
        return control

    def _slowest_us(self, run: Callable[[int], None]) -> float:
        """The slowest thread's time, in the best of some slices."""
        times = (max(self._threads.together(run)) for _ in range(_CONTROL_SLICES))
        return round(min(times) / 1000, 2)

    def _handover_ns(self) -> float | None:
        """The median over cache lines: how far a line's home is from the cores differs."""
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
        threads = len(self._threads)
        return self._threads.together(lambda i: self._ring(_TURNS, address, i, threads))

    @cached_property
    def _tokens(self) -> np.ndarray:
        return aligned_bytes(_LINES * _LINE_DISTANCE)

    @cached_property
    def _ring(self) -> Program:
        from dnnsep.measure import loops

        return loops.token_ring()

    # Both are counted in work, not in time, so that it is the same in every sweep.

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
