"""A strided copy as a step of a program."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from math import prod

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.windows.copycode import CopySpecial, CopyTask, emit_copy, vector_lanes
from dnnsep.codegen.windows.copying import MOST_DIMENSIONS, Layout, merged
from dnnsep.codegen.windows.task import compiled

# Less work than this, in bytes, is not worth waking a thread for.
PART_BYTES = 16 * 1024
# Rows and columns of a block that is transposed, and bytes of one that is copied row by row: they
# fit the L1 cache.
_SIDE, _BLOCK_BYTES = 64, 16 * 1024
# The most streams that are zipped.
_ZIPPED = 4


@dataclass(frozen=True)
class CopyStep:
    """A copy of elements of so many bytes, from strides to strides, counted in elements, for a team
    of so many threads. What is written must not overlap itself or what is read. Operands: x, y.
    """

    sizes: tuple[int, ...]
    x_strides: tuple[int, ...]
    y_strides: tuple[int, ...]
    element_bytes: int
    isa: Isa
    threads: int

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be copied."""
        if self.element_bytes not in (1, 2, 4):
            raise ValueError(f"element_bytes {self.element_bytes}: must be 1, 2 or 4")
        if self.threads < 1:
            raise ValueError(f"threads {self.threads}: must be at least 1")
        _ = self.layout

    @cached_property
    def layout(self) -> Layout:
        """The dimensions that the kernel goes through."""
        layout = Layout.of(merged(self.sizes, self.x_strides, self.y_strides), _ZIPPED)
        longest = max(one.size for one in layout.plane)
        if layout.kind in ("zip", "unzip") and longest < self._lanes(layout.kind):
            return Layout("tiles", layout.dimensions)
        return layout

    def _lanes(self, kind: str) -> int:
        return vector_lanes(kind, self.element_bytes, self.isa)

    @property
    def special(self) -> CopySpecial:
        """All that decides the kernel."""
        kind, (along, across) = self.layout.kind, self.layout.plane
        lanes = self._lanes(kind)
        rows, columns = min(along.size, lanes), min(across.size, lanes)
        if kind == "elements":
            rows = columns = 1
        if kind in ("rows", "zip"):
            rows = 1
        if kind == "unzip":
            columns = 1
        return CopySpecial(kind, rows, columns, self.element_bytes, self.isa)

    @cached_property
    def kernel(self) -> Function:
        """The compiled kernel."""
        return compiled(self.special, emit_copy)

    @property
    def bytes(self) -> int:
        """The bytes that are read and written, from which its time can be told."""
        return 2 * prod(self.sizes) * self.element_bytes

    @property
    def parts(self) -> int:
        """How many threads can share the work."""
        return max(1, min(self.threads, self._units, self.bytes // PART_BYTES))

    @property
    def scratch_bytes(self) -> int:
        """No scratch memory is needed."""
        return 0

    def task(self) -> ctypes.Structure:
        """Returns a new CopyTask; the addresses of ``x`` and ``y`` are still 0."""
        numbered = range(MOST_DIMENSIONS), self.layout.dimensions
        task: ctypes.Structure = CopyTask.of(
            self._units,
            self.parts,
            **{f"size{n}": one.size for n, one in zip(*numbered, strict=True)},
            **{f"x_stride{n}": one.x for n, one in zip(*numbered, strict=True)},
            **{f"y_stride{n}": one.y for n, one in zip(*numbered, strict=True)},
            **{f"block{n}": size for n, size in zip((3, 4, 5), self._block, strict=True)},
            **{f"blocks{n}": count for n, count in zip((3, 4, 5), self._blocks, strict=True)},
        )
        return task

    @property
    def _block(self) -> tuple[int, int, int]:
        """The sizes of a unit in the last three dimensions; whole vectors, where a dimension is
        more than one block."""
        along, across = self.layout.plane
        lanes = self._lanes(self.layout.kind)
        room = _BLOCK_BYTES // self.element_bytes
        rows, columns = along.size, across.size
        if self.layout.kind == "tiles":
            rows, columns = min(_SIDE, rows), min(_SIDE, columns)
        elif self.layout.kind == "zip":
            rows = min(rows, room // columns // lanes * lanes)
        elif self.layout.kind == "unzip":
            columns = min(columns, room // rows // lanes * lanes)
        else:
            columns = min(columns, room)
            rows = min(rows, max(1, room // columns))
        planes = self.layout.dimensions[-3].size
        return min(planes, max(1, room // (rows * columns))), rows, columns

    @property
    def _blocks(self) -> tuple[int, int, int]:
        planes, rows, columns = (
            -(-one.size // block)
            for one, block in zip(self.layout.dimensions[-3:], self._block, strict=True)
        )
        return planes, rows, columns

    @property
    def _units(self) -> int:
        return prod(one.size for one in self.layout.dimensions[:-3]) * prod(self._blocks)
