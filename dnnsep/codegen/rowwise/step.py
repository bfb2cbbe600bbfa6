"""Row-wise kernels, and those that reduce pixels, as steps of a program."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.rowwise.columns import blocks, emit_columns
from dnnsep.codegen.rowwise.kernel import compiled
from dnnsep.codegen.rowwise.rows import emit_rows
from dnnsep.codegen.rowwise.special import PixelReduction, Rowwise
from dnnsep.codegen.rowwise.task import RowwiseTask
from dnnsep.dtypes import DTYPES, TENSOR_DTYPES

# Less work than this, in bytes read and written, is not worth waking a thread for.
PART_BYTES = 16 * 1024


@dataclass(frozen=True)
class RowwiseStep:
    """An expression of all pixels of some images, for a team of so many threads.

    ``pitches`` are how many elements apart the rows of each operand are, in order; only those of
    operands of pixels are used.
    """

    special: Rowwise
    images: int
    pixels: int
    pitches: tuple[int, ...]
    y_pitch: int
    threads: int

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that no tensor has."""
        if min(self.images, self.pixels, self.threads) < 1:
            raise ValueError(f"{self}: images, pixels and threads must be at least 1")
        if len(self.pitches) != len(self.special.inputs):
            raise ValueError(f"{self}: must have a pitch for each operand")
        for operand, pitch in zip(self.special.inputs, self.pitches, strict=True):
            if operand.kind == "pixels" and pitch < self.special.channels:
                raise ValueError(f"pitch {pitch}: must be at least {self.special.channels}")
        if self.y_pitch < self.special.channels:
            raise ValueError(f"pitch {self.y_pitch}: must be at least {self.special.channels}")

    @cached_property
    def kernel(self) -> Function:
        """The compiled kernel."""
        return compiled(self.special, emit_rows)

    @property
    def bytes(self) -> int:
        """The bytes of pixels that are read and written, from which its time can be told: what it
        computes seldom takes longer."""
        of_pixels = [operand for operand in self.special.inputs if operand.kind == "pixels"]
        dtypes = [self.special.dtype, *map(self.special.dtype_of, of_pixels)]
        rows = self.images * self.pixels
        return rows * self.special.channels * sum(TENSOR_DTYPES[dtype].bytes for dtype in dtypes)

    @property
    def parts(self) -> int:
        """How many threads can share the work."""
        units = -(-self.images * self.pixels // self.special.together)
        return max(1, min(self.threads, units, self.bytes // PART_BYTES))

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory that a part needs."""
        return self.special.scratch_floats * 4

    def task(self) -> ctypes.Structure:
        """Returns a new task; the addresses of its operands and of its result are still 0."""
        return _new_task(self.images, self.pixels, self.parts, self.pitches, self.y_pitch)


@dataclass(frozen=True)
class PixelReductionStep:
    """A reduction of the pixels of some images, for a team of so many threads; the input's rows are
    ``pitch`` elements apart, the result's rows, one for each image, ``y_pitch``."""

    special: PixelReduction
    images: int
    pixels: int
    pitch: int
    y_pitch: int
    threads: int

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that no tensor has."""
        if min(self.images, self.pixels, self.threads) < 1:
            raise ValueError(f"{self}: images, pixels and threads must be at least 1")
        for pitch in (self.pitch, self.y_pitch):
            if pitch < self.special.channels:
                raise ValueError(f"pitch {pitch}: must be at least {self.special.channels}")

    @cached_property
    def kernel(self) -> Function:
        """The compiled kernel."""
        return compiled(self.special, emit_columns)

    @property
    def bytes(self) -> int:
        """The bytes that are read, from which its time can be told."""
        special = self.special
        return self.images * self.pixels * special.channels * DTYPES[special.dtype].bytes

    @property
    def parts(self) -> int:
        """How many threads can share the work."""
        special = self.special
        units = self.images * blocks(special.channels, special.isa)
        return max(1, min(self.threads, units, self.bytes // PART_BYTES))

    @property
    def scratch_bytes(self) -> int:
        """No scratch memory is needed."""
        return 0

    def task(self) -> ctypes.Structure:
        """Returns a new RowwiseTask; the addresses of ``x0`` and ``y`` are still 0."""
        pitches = (self.pitch,)
        return _new_task(self.images, self.pixels, self.parts, pitches, self.y_pitch)


def _new_task(
    images: int, pixels: int, parts: int, pitches: Sequence[int], y_pitch: int
) -> RowwiseTask:
    return RowwiseTask(
        images=images,
        pixels=pixels,
        parts=parts,
        y_pitch=y_pitch,
        **{f"pitch{operand}": pitch for operand, pitch in enumerate(pitches)},
    )
