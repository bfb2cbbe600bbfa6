"""A layer as a step of a program whose kernel is told the sizes of its input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.general import (
    GeneralTask,
    as_run,
    emit_general,
    product_sizes,
    products_of,
)
from dnnsep.codegen.kernel import GAP_BYTES
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.program import Placed, alone
from dnnsep.codegen.reach import Reach, reach_of
from dnnsep.codegen.stages.base import Window
from dnnsep.codegen.task import KERNEL
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles
from dnnsep.problem import Problem

_PAGE = 4096
# A tile takes so many bytes at most, but has so many blocks of pixels: smaller and larger ones were
# slower on MobileNet V2's layers, on 2 cores of an AMD EPYC of family 25.
_TILE_BYTES, _BLOCKS = 24 * 1024, 2
# So many ways to cut a layer up stay known.
_MOST_CUTS = 256


@dataclass(frozen=True)
class Cut:
    """How the output of a general kernel is cut up: see GeneralTask."""

    pixel_parts: int
    channel_parts: int
    tile: int


@dataclass(frozen=True)
class General:
    """All that decides the code of a general kernel: a layer, the vectors of its panels, and what
    it takes beside its input."""

    layer: Layer
    vectors: int
    extras: Extras

    @classmethod
    def of(cls, layer: Layer, extras: Extras) -> General:
        """Returns that of a layer. Raises ValueError where it has no general kernel."""
        as_run(layer, extras)
        product, lanes = layer.product, layer.isa.lanes
        vectors = min(layer.dot.vectors, -(-product.out_channels // lanes)) if product else 1
        return cls(layer, vectors, extras)

    @cached_property
    def packing(self) -> Packing:
        """How the weights lie in memory; of most sizes a specialised kernel's lie alike."""
        return Packing(self.layer, self.vectors)

    @cached_property
    def used(self) -> Layer:
        """The layer as the kernel runs it."""
        return as_run(self.layer, self.extras)

    @cached_property
    def sizes(self) -> list[int]:
        """The numbers of pixels that the kernel has products for, the most first."""
        return product_sizes(self.layer, self.vectors)

    @cached_property
    def window(self) -> Window:
        """Where the layer reads its input."""
        return self.layer.window

    @cached_property
    def fills_tiles(self) -> bool:
        """Whether what is multiplied is put into a tile first."""
        return self.used.source is not None and self.used.product is not None

    @cached_property
    def source_cycles(self) -> float:
        """The cycles that filling a tile takes for each pixel."""
        used = self.used
        return used.source.cycles(used.isa, used.dot) if used.source is not None else 0.0

    @cached_property
    def _cuts(self) -> dict[tuple[int, int], Cut]:
        return {}

    @cached_property
    def cycles(self) -> dict[int, float]:
        """The cycles of each of its products, by the number of pixels."""
        dot, isa, used = self.layer.dot, self.layer.isa, self.used
        return {size: dot.cycles(isa, size, self.vectors, used.depth) for size in self.sizes}

    @cached_property
    def pixel_bytes(self) -> int:
        """Bytes of what is multiplied of a pixel: of a tile, or of the input."""
        used = self.used
        if used.source is None:
            return self.extras.pitches(used).x * used.dot.bytes
        return used.tile_stride * used.dot.bytes

    @cached_property
    def kernel(self) -> Function:
        """The compiled kernel."""
        return compiled_general(self)

    def cut(self, pixels: int, threads: int) -> Cut:
        """Returns how so many output pixels are cut up for so many threads: as the busiest part
        takes the fewest cycles, by the layer's own estimates."""
        key = (pixels, threads)
        if key not in self._cuts:
            if len(self._cuts) >= _MOST_CUTS:
                self._cuts.clear()
            self._cuts[key] = self._new_cut(*key)
        return self._cuts[key]

    def _new_cut(self, pixels: int, threads: int) -> Cut:
        if self.used.product is None:
            return Cut(min(threads, pixels), 1, self.sizes[0])
        panels = self.packing.panels

        def cycles(channel_parts: int) -> float:
            of_part = ceil(pixels / max(1, threads // channel_parts))
            return of_part * self.source_cycles + ceil(panels / channel_parts) * sum(
                self.cycles[size] for size in products_of(of_part, self.sizes)
            )

        ways = [n for n in range(1, min(threads, panels) + 1) if threads % n == 0]
        channel_parts = min(ways, key=cycles)
        pixel_parts = min(max(1, threads // channel_parts), pixels)
        of_part, block = ceil(pixels / pixel_parts), self.sizes[0]
        most = max(_BLOCKS * block, _TILE_BYTES // self.pixel_bytes // block * block)
        tiles = ceil(of_part / most)
        return Cut(pixel_parts, channel_parts, ceil(ceil(of_part / tiles) / block) * block)


@dataclass(frozen=True, eq=False)
class GeneralStep:
    """A layer for an input of some sizes, cut up for so many threads, with its weights as the
    packing of ``general`` lays them out. Its operands are those of LayerStep. ``example`` is the
    layer's problem for an input of any size."""

    general: General
    extent: Extent
    threads: int
    packed: NDArray[np.uint8]
    example: Problem

    @property
    def problem(self) -> Problem:
        """The layer's problem for this input."""
        if self.example.kind == "linear":
            return replace(self.example, batch=self.extent.width)
        sizes = vars(self.extent)
        return replace(self.example, **sizes)

    @property
    def layer(self) -> Layer:
        """What of the problem does not depend on its input's size."""
        return self.general.layer

    @cached_property
    def _out(self) -> tuple[int, int]:
        return self.extent.out_size(self.general.window)

    @cached_property
    def _cut(self) -> Cut:
        high, wide = self._out
        return self.general.cut(self.extent.batch * high * wide, self.threads)

    @property
    def kernel(self) -> Function:
        return self.general.kernel

    @property
    def parts(self) -> int:
        return self._cut.pixel_parts * self._cut.channel_parts

    @property
    def scratch_bytes(self) -> int:
        if not self.general.fills_tiles:
            return GAP_BYTES
        return -(-self._cut.tile * self.general.pixel_bytes // _PAGE) * _PAGE + GAP_BYTES

    def reach(self, part: int) -> Reach | None:
        """Returns what a part reads and writes of the operands; None where that is not known."""
        high, wide = self._out
        pixels, number = self.extent.batch * high * wide, part // self._cut.channel_parts
        first, last = (pixels * n // self._cut.pixel_parts for n in (number, number + 1))
        return reach_of(self.layer, self.general.extras, self.extent, range(first, last))

    def alone(self) -> Placed:
        """Returns the step on a program's input and what is given with it, into its output."""
        return alone(self, self.general.extras.residual, self.general.extras.scale)

    @property
    def dense(self) -> GeneralStep:
        """The same on tensors in memory of their own."""
        general = replace(self.general, extras=self.general.extras.dense)
        return replace(self, general=general)

    def task(self) -> GeneralTask:
        high, wide = self._out
        parts = self._cut
        every = range(self.extent.batch * high * wide)
        return self._task(every, parts.pixel_parts, parts.channel_parts)

    def task_of(self, pixels: range) -> GeneralTask:
        """Returns a new task whose only part is some pixels of the output, with all channels."""
        return self._task(pixels, 1, 1)

    def _task(self, pixels: range, pixel_parts: int, channel_parts: int) -> GeneralTask:
        extent, (high, wide) = self.extent, self._out
        inner, inner_end = extent.inner_columns(self.general.window, wide)
        return GeneralTask(
            packed=self.packed.ctypes.data,
            height=extent.height,
            width=extent.width,
            out_height=high,
            out_width=wide,
            first=pixels.start,
            pixels=len(pixels),
            inner=inner,
            inner_end=inner_end,
            pixel_parts=pixel_parts,
            channel_parts=channel_parts,
            tile=self._cut.tile,
        )


# As ``compiled``: so many stay beside those in use.
@lru_cache(512)
def compiled_general(general: General) -> Function:
    """Returns the kernel, from the disk where it is there."""
    key = f"{generator()} {general}"
    code = cachefiles.load("kernels", key)
    if code is None:
        module = emit_general(general.layer, general.vectors, general.extras)
        code = machine_code(module, general.layer.isa.target)
        cachefiles.save("kernels", key, code)
    return Function(code, "run", KERNEL)
