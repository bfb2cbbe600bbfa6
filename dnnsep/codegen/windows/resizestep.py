"""Resizing as a step of a program."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.windows.resizecode import ResizeSpecial, ResizeTask, emit_resize
from dnnsep.codegen.windows.resizing import Resizing, Taps
from dnnsep.codegen.windows.task import compiled
from dnnsep.dtypes import DTYPES

# Less work than this, in bytes written, is not worth waking a thread for.
PART_BYTES = 16 * 1024


@dataclass(frozen=True)
class ResizeStep:
    """The resizing of ``images`` of height x width x channels, for a team of so many threads.

    Pixels are ``x_pitch`` elements apart, those of the result ``y_pitch``. Operands: x, y.
    """

    resizing: Resizing
    images: int
    height: int
    width: int
    channels: int
    x_pitch: int
    y_pitch: int
    dtype: str
    isa: Isa
    threads: int

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that no tensor has."""
        if min(self.images, self.height, self.width, self.channels, self.threads) < 1:
            raise ValueError(f"{self}: sizes and threads must be at least 1")
        if min(self.x_pitch, self.y_pitch) < self.channels:
            raise ValueError(f"{self}: pitches must be at least the channels")

    @property
    def output_size(self) -> tuple[int, int]:
        """The height and width of the result."""
        return self.resizing.output_size

    @property
    def special(self) -> ResizeSpecial:
        """All that decides the kernel."""
        lanes = min(self.channels, self.isa.lanes)
        return ResizeSpecial(self.resizing.mode, lanes, self.dtype, self.isa)

    @cached_property
    def kernel(self) -> Function:
        """The compiled kernel."""
        return compiled(self.special, emit_resize)

    @property
    def bytes(self) -> int:
        """The bytes that are read and written, from which its time can be told."""
        rows, columns = self.output_size
        pixels = self.images * (self.height * self.width + rows * columns)
        return pixels * self.channels * DTYPES[self.dtype].bytes

    @property
    def parts(self) -> int:
        """How many threads can share the work."""
        return max(1, min(self.threads, self._units, self.bytes // PART_BYTES))

    @property
    def scratch_bytes(self) -> int:
        """No scratch memory is needed."""
        return 0

    def task(self) -> ctypes.Structure:
        """Returns a new ResizeTask, whose tables are the step's; the addresses of ``x`` and ``y``
        are still 0."""
        row, column = self._taps
        task: ctypes.Structure = ResizeTask.of(
            self._units,
            self.parts,
            row_places=row.places.ctypes.data,
            row_weights=row.weights.ctypes.data,
            column_places=column.places.ctypes.data,
            column_weights=column.weights.ctypes.data,
            height=self.height,
            width=self.width,
            channels=self.channels,
            x_pitch=self.x_pitch,
            y_pitch=self.y_pitch,
            rows=self.output_size[0],
            columns=self.output_size[1],
        )
        return task

    @cached_property
    def _taps(self) -> tuple[Taps, Taps]:
        """The tables of both axes, which tasks have the addresses of."""
        return self.resizing.taps(0, self.height), self.resizing.taps(1, self.width)

    @property
    def _units(self) -> int:
        return self.images * self.output_size[0]
