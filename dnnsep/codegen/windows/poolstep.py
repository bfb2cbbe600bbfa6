"""Pooling as a step of a program."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.windows.poolcode import PoolSpecial, PoolTask, emit_pool
from dnnsep.codegen.windows.pooling import Pooling
from dnnsep.codegen.windows.task import compiled
from dnnsep.dtypes import TENSOR_DTYPES

# Less work than this, in bytes read, is not worth waking a thread for.
PART_BYTES = 16 * 1024
# Rows of output pixels for each thread, below which channels are shared out too.
_ROWS = 4


@dataclass(frozen=True)
class PoolStep:
    """The pooling of ``images`` of height x width x channels, for a team of so many threads.

    Pixels are ``x_pitch`` elements apart, those of the result ``y_pitch``. Of bytes the largest is
    taken, never a mean. Operands: x, y.
    """

    pooling: Pooling
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
        if TENSOR_DTYPES[self.dtype].bytes == 1 and self.pooling.kind != "max":
            raise ValueError(f"{self}: bytes have no mean")
        _ = self.output_size

    @property
    def output_size(self) -> tuple[int, int]:
        """The height and width of the result."""
        return self.pooling.output_size(self.height, self.width)

    @property
    def special(self) -> PoolSpecial:
        """All that decides the kernel."""
        pooling = self.pooling
        columns = pooling.kernel[1], pooling.stride[1], pooling.dilation[1]
        lanes = min(self.channels, self.isa.lanes)
        return PoolSpecial(pooling.kind, *columns, lanes, self.dtype, self.isa)

    @cached_property
    def kernel(self) -> Function:
        """The compiled kernel."""
        return compiled(self.special, emit_pool)

    @property
    def bytes(self) -> int:
        """The bytes that are read and written, from which its time can be told."""
        rows, columns = self.output_size
        pixels = self.images * (self.height * self.width + rows * columns)
        return pixels * self.channels * TENSOR_DTYPES[self.dtype].bytes

    @property
    def parts(self) -> int:
        """How many threads can share the work."""
        return max(1, min(self.threads, self._rows * self._groups, self.bytes // PART_BYTES))

    @property
    def scratch_bytes(self) -> int:
        """No scratch memory is needed."""
        return 0

    def task(self) -> ctypes.Structure:
        """Returns a new PoolTask; the addresses of ``x`` and ``y`` are still 0."""
        pooling, (rows, columns) = self.pooling, self.output_size
        pad, stride = pooling.padding[1], pooling.stride[1]
        first = min(columns, -(-pad // stride))
        last = (self.width - pooling.reach[1] + pad) // stride + 1
        task: ctypes.Structure = PoolTask.of(
            self._rows * self._groups,
            self.parts,
            height=self.height,
            width=self.width,
            channels=self.channels,
            x_pitch=self.x_pitch,
            y_pitch=self.y_pitch,
            groups=self._groups,
            vectors=self._vectors,
            rows=rows,
            columns=columns,
            inner_first=first,
            inner_last=max(first, min(columns, last)),
            kernel=pooling.kernel[0],
            stride=pooling.stride[0],
            padding=pooling.padding[0],
            padding_columns=pad,
            dilation=pooling.dilation[0],
            counts_pad=pooling.counts_pad,
        )
        return task

    @property
    def _rows(self) -> int:
        return self.images * self.output_size[0]

    @property
    def _vectors(self) -> int:
        return -(-self.channels // self.isa.lanes)

    @property
    def _groups(self) -> int:
        """Into how many groups the vectors of channels are shared out."""
        wanted = -(-self.threads * _ROWS // self._rows)
        return min(self._vectors, wanted) if self.threads > 1 else 1
