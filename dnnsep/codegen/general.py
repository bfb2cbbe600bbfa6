"""The general kernel of a layer: it is told the sizes of its input at run time.

Its output pixels are one run, through all rows of all images. A part is a range of them by a range
of panels, done tile by tile as in a specialised kernel (fuse.py); where rows end matters to the
source alone, which fills a tile row by row. Of a row the pixels under which the whole width of the
kernel meets the image are computed some at once. So are the first and the last ones of a row that
is long enough and whose last kernel reaches to the end of the padding; what is left is computed one
by one. Products take sums in the same order as a specialised kernel's, so both give the same
results to the bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from llvmlite import ir

from dnnsep.codegen.dots import VectorDot
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import BYTE, F32, I64, Code
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.stages.base import Image, Row, Taps
from dnnsep.codegen.stages.matmul import Product
from dnnsep.codegen.task import KERNEL_TYPES, load_field, share
from dnnsep.dtypes import DTYPES, PRECISIONS

# So many pixels of a row a source computes at once: what the registers hold of four blocks of
# channels under a 3x3 kernel.
_AT_ONCE = 4
# How many pixels products take, as shares of the most that the registers hold.
_SIZES = (1, 0.79, 0.5, 0.29, 0.14)
_PAGE = 4096


_ADDRESSES = ("x", "y", "packed", "residual", "scale")
_SIZES_TOLD = (
    *("height", "width", "out_height", "out_width", "first", "pixels"),
    *("inner", "inner_end", "pixel_parts", "channel_parts", "tile"),
)


class GeneralTask(ctypes.Structure):
    """What a general kernel works on: addresses as in Task, and sizes.

    ``height`` and ``width`` are the input's, ``out_height`` and ``out_width`` the output's. Of its
    pixels, through all images, as many as ``pixels`` are computed from the ``first`` one on; in
    columns [``inner``, ``inner_end``) the whole width of the kernel meets the image. The work is
    cut into ``pixel_parts`` by ``channel_parts``, and a tile is ``tile`` pixels.
    """

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _ADDRESSES),
        *((name, ctypes.c_int64) for name in _SIZES_TOLD),
    )


def as_run(layer: Layer, extras: Extras) -> Layer:
    """Returns a layer as its general kernel runs it: what it multiplies is copied into a tile first
    where it cannot be read where it is, or where so many pixels would compete for the same places
    of the L1 cache. Raises ValueError where there is no general kernel."""
    extras.check(layer)
    if layer.source is None and layer.product is None:
        raise ValueError("no general kernel for a mean")
    if layer.product is not None and layer.dot.in_tiles:
        raise ValueError("no general kernel for products on a tile unit")
    if PRECISIONS[layer.dtype].quantized:
        raise ValueError("no general kernel for a quantised layer")
    crowded = extras.pitches(layer).x * DTYPES[layer.dtype].bytes % _PAGE == 0
    if extras.scale or crowded or not layer.reads_input:
        return layer.gathered(extras.scale)
    return layer


def product_sizes(layer: Layer, vectors: int) -> list[int]:
    """Returns the numbers of pixels that a general kernel has products for, the most first."""
    most = layer.dot.pixels(layer.isa, vectors)
    return sorted({max(1, round(most * share)) for share in _SIZES} | {1}, reverse=True)


def products_of(pixels: int, sizes: list[int]) -> list[int]:
    """Returns the sizes of the products that so many pixels are multiplied by, as ``_blocks`` in
    the kernel takes them."""
    found: list[int] = []
    left = pixels
    for size, smaller in zip(sizes, [*sizes[1:], 0], strict=True):
        found += [size] * (left // size)
        left %= size
        if left > smaller and pixels >= size:
            found.append(size)
            left = 0
    return found


def emit_general(layer: Layer, vectors: int, extras: Extras) -> ir.Module:
    """Returns a module with ``run(task, part, scratch)`` for panels of so many vectors, which does
    one part; ``task`` points to a GeneralTask. Raises as ``as_run``."""
    module = ir.Module()
    module.triple = ""
    _Emitter(module, layer, vectors, extras).emit()
    return module


@dataclass(frozen=True)
class _Edge:
    """Some pixels at the beginning (``first``) or the end of a row, and the source for them."""

    first: bool
    function: ir.Function


class _Emitter:
    def __init__(self, module: ir.Module, layer: Layer, vectors: int, extras: Extras) -> None:
        self.module, self.extras, self.packing = module, extras, Packing(layer, vectors)
        self.layer = as_run(layer, extras)
        self.pitches, self.added = extras.pitches(layer), extras.added(layer)
        self.window, self.element = layer.window, ELEMENTS[layer.dtype].type
        self.sink = self.layer.sink(self.pitches.y, self.added)
        self.products: dict[tuple[int, int], ir.Function] = {}
        self.code = Code(module, "run", KERNEL_TYPES)
        task, self.part, self.scratch = self.code.arguments
        for name in _ADDRESSES:
            setattr(self, name, load_field(self.code, GeneralTask, task, name))
        for name in _SIZES_TOLD:
            setattr(self, name, load_field(self.code, GeneralTask, task, name, I64))

    x: ir.Value
    y: ir.Value
    packed: ir.Value
    residual: ir.Value
    scale: ir.Value
    height: ir.Value
    width: ir.Value
    out_height: ir.Value
    out_width: ir.Value
    first: ir.Value
    pixels: ir.Value
    inner: ir.Value
    inner_end: ir.Value
    pixel_parts: ir.Value
    channel_parts: ir.Value
    tile: ir.Value

    def emit(self) -> ir.Function:
        code, b = self.code, self.code.builder
        by_pixels = b.sdiv(self.part, self.channel_parts)
        by_channels = b.srem(self.part, self.channel_parts)
        begin, end = (
            b.add(self.first, at) for at in share(code, self.pixels, by_pixels, self.pixel_parts)
        )
        panels = share(code, I64(self.packing.panels), by_channels, self.channel_parts)

        def one_tile(first: ir.Value) -> None:
            last = code.least(b.add(first, self.tile), end)
            if self.layer.product is None:
                self._fill(first, last, self._pixel(self.y, first, self.pitches.y))
            elif self.layer.source is None:
                self._multiply(
                    first, last, panels, lambda p: self._pixel(self.x, p, self.pitches.x)
                )
            else:
                self._fill(first, last, self.scratch)
                self._multiply(
                    first, last, panels, lambda p: self._slot(self.scratch, b.sub(p, first))
                )

        code.for_each(begin, end, one_tile, step=self.tile)
        return code.end()

    def _pixel(self, start: ir.Value, pixel: ir.Value, pitch: int) -> ir.Value:
        """Returns the address of a pixel of a tensor of the layer's dtype."""
        return self.code.at(start, self.code.builder.mul(pixel, I64(pitch)), self.element)

    def _slot(self, target: ir.Value, number: ir.Value) -> ir.Value:
        """Returns the address of the number-th pixel from ``target`` on, in the source's sink."""
        elements = self.code.builder.mul(number, I64(self.sink.stride))
        return self.code.at(target, elements, self.sink.element)

    # The source

    def _fill(self, first: ir.Value, last: ir.Value, target: ir.Value) -> None:
        """Emits the source for the output pixels [first, last), into ``target``."""
        code, b = self.code, self.code.builder
        last_row = b.sdiv(b.sub(last, I64(1)), self.out_width)

        def one_row(row: ir.Value) -> None:
            of_row = b.mul(row, self.out_width)
            begin = b.sub(code.most(first, of_row), of_row)
            end = b.sub(code.least(last, b.add(of_row, self.out_width)), of_row)
            self._row(row, begin, end, self._slot(target, b.sub(of_row, first)))

        code.for_each(b.sdiv(first, self.out_width), b.add(last_row, I64(1)), one_row)

    def _row(self, row: ir.Value, begin: ir.Value, end: ir.Value, target: ir.Value) -> None:
        """Emits the source for columns [begin, end) of an output row; in ``target`` is the place of
        the row's first pixel, which need not be there itself."""
        code, b, window = self.code, self.code.builder, self.window
        image, out_row = b.sdiv(row, self.out_height), b.srem(row, self.out_height)
        above = b.sub(b.mul(out_row, I64(window.stride[0])), I64(window.padding[0]))
        rows = self._met(above, self.height, 0)
        line = b.mul(b.add(b.mul(image, self.height), above), self.width)
        weights = self.packed
        if self.extras.scale:
            channels = b.mul(image, I64(self.layer.channels))
            weights = code.at(self.scale, channels, self.element)

        def call(function: ir.Function, column: ir.Value, *more: ir.Value) -> None:
            left = b.sub(b.mul(column, I64(window.stride[1])), I64(window.padding[2]))
            x = self._pixel(self.x, b.add(line, left), self.pitches.x)
            arguments = [x, weights, self._slot(target, column), *rows]
            if self.layer.product is None and self.added is not None:
                pixel = b.add(b.mul(row, self.out_width), column)
                arguments.append(self._pixel(self.residual, pixel, self.added.pitch))
            b.call(function, [*arguments, self.width, *more])

        def single(column: ir.Value) -> None:
            left = b.sub(b.mul(column, I64(window.stride[1])), I64(window.padding[2]))
            call(self._single, column, *self._met(left, self.width, 1))

        for edge in self._edges:
            begin, end = self._edge(edge, begin, end, call)
        inner = code.least(code.most(self.inner, begin), end)
        inner_end = code.most(code.least(self.inner_end, end), inner)
        enough = b.icmp_signed(">=", b.sub(inner_end, inner), I64(_AT_ONCE))
        wide_end = b.select(enough, inner_end, inner)
        code.for_each(begin, inner, single)

        def wide(column: ir.Value) -> None:
            # The last ones end where the row's inner part does: some pixels are computed twice.
            call(self._wide, code.least(column, b.sub(wide_end, I64(_AT_ONCE))))

        code.for_each(inner, wide_end, wide, step=_AT_ONCE)
        code.for_each(wide_end, end, single)

    def _edge(
        self,
        edge: _Edge,
        begin: ir.Value,
        end: ir.Value,
        call: Callable[[ir.Function, ir.Value], None],
    ) -> tuple[ir.Value, ir.Value]:
        """Emits the first or the last pixels of a row, if they are among its columns [begin, end)
        and meet the image as the edge's function has it; returns which columns are left."""
        code, b, window = self.code, self.code.builder, self.window
        some = I64(_AT_ONCE)
        there = [b.icmp_signed(">=", b.sub(end, begin), some)]
        if edge.first:
            there += [b.icmp_signed("==", begin, I64(0)), b.icmp_signed(">=", self.inner_end, some)]
        else:
            last = b.sub(self.out_width, I64(1))
            reach = (window.kernel[1] - 1) * window.dilation[1] - window.padding[2]
            # How far the kernel is beyond the image at the last pixel.
            beyond = b.sub(b.add(b.mul(last, I64(window.stride[1])), I64(reach + 1)), self.width)
            there += [
                b.icmp_signed("==", end, self.out_width),
                b.icmp_signed("==", beyond, I64(window.padding[3])),
                b.icmp_signed(">=", b.sub(end, some), self.inner),
            ]
        all_there = b.and_(there[0], there[1])
        for condition in there[2:]:
            all_there = b.and_(all_there, condition)
        start = I64(0) if edge.first else b.sub(end, some)
        code.when(all_there, lambda: call(edge.function, start))
        if edge.first:
            return b.select(all_there, some, begin), end
        return begin, b.select(all_there, start, end)

    @cached_property
    def _edges(self) -> list[_Edge]:
        """The ends of rows where the kernel is partly outside the image."""
        window, edges = self.window, []
        _, _, left, right = window.padding
        if left > 0:
            taps = window.over(Row(0, _AT_ONCE), 1 << 30)
            edges.append(_Edge(True, self._source("source_of_first", taps)))
        if right > 0:
            # Of a row that ends as far beyond its image as any can.
            reach = (window.kernel[1] - 1) * window.dilation[1] + 1
            pixels = _AT_ONCE + left + reach
            width = (pixels - 1) * window.stride[1] + reach - left - right
            taps = window.over(Row(pixels - _AT_ONCE, _AT_ONCE), width)
            edges.append(_Edge(False, self._source("source_of_last", taps)))
        return edges

    def _met(self, start: ir.Value, size: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
        """Returns the first tap of an axis of the kernel that meets an image of a size, and the one
        after the last, where tap 0 is at ``start``, maybe outside."""
        code, b = self.code, self.code.builder
        step, taps = self.window.dilation[axis], self.window.kernel[axis]

        def taps_until(place: ir.Value) -> ir.Value:
            ahead = code.most(I64(0), b.sub(place, start))
            return code.least(I64(taps), b.sdiv(b.add(ahead, I64(step - 1)), I64(step)))

        return taps_until(I64(0)), taps_until(size)

    @cached_property
    def _wide(self) -> ir.Function:
        """The source for some pixels of a row that the whole width of the kernel meets."""
        every = range(self.window.kernel[1])
        return self._source("source", Taps(_AT_ONCE, (every,) * _AT_ONCE))

    @cached_property
    def _single(self) -> ir.Function:
        """The source for a pixel that is told which columns of the kernel meet the image."""
        return self._source("source_of_pixel", Taps(1, None))

    def _source(self, name: str, taps: Taps) -> ir.Function:
        source, layer = self.layer.source, self.layer
        assert source is not None
        image = Image(None, self.pitches.x)
        return source.emit(self.module, name, layer.isa, layer.dot, image, taps, self.sink)

    # The product

    def _multiply(
        self,
        first: ir.Value,
        last: ir.Value,
        panels: tuple[ir.Value, ir.Value],
        rows_of: Callable[[ir.Value], ir.Value],
    ) -> None:
        """Emits the output pixels [first, last) times each panel; ``rows_of`` says where what is
        multiplied of a pixel begins."""
        code, b, packing = self.code, self.code.builder, self.packing

        def times(panel: ir.Value, columns: int) -> None:
            matrix = code.at(self.packed, packing.matrix, BYTE)
            weights = code.at(matrix, b.mul(panel, I64(packing.panel_bytes)), BYTE)
            channel = b.mul(panel, I64(packing.panel_channels))
            table = code.at(code.at(self.packed, packing.table, BYTE), channel, F32)

            def block(pixel: ir.Value, pixels: int) -> None:
                y = code.at(self._pixel(self.y, pixel, self.pitches.y), channel, self.element)
                added = y
                if self.added is not None:
                    start = self._pixel(self.residual, pixel, self.added.pitch)
                    added = code.at(start, channel, self.element)
                arguments = [rows_of(pixel), weights, table, y, added, y, y]
                b.call(self._product(pixels, columns), arguments)

            self._blocks(first, last, block)

        begin, end = panels
        whole = I64(packing.whole_panels)
        if packing.whole_panels:
            code.for_each(
                begin, code.least(end, whole), lambda panel: times(panel, packing.panel_channels)
            )
        if packing.tail_channels:
            there = b.icmp_signed(">", end, whole)
            code.when(there, lambda: times(whole, packing.tail_channels))

    def _blocks(
        self, first: ir.Value, last: ir.Value, block: Callable[[ir.Value, int], None]
    ) -> None:
        """Emits ``block(pixel, pixels)`` for pixels that cover [first, last), as many at once as
        there are products for. The last ones are computed twice where that takes fewer calls."""
        code, b, at = self.code, self.code.builder, first
        sizes = product_sizes(self.layer, self.packing.vectors)
        for size, smaller in zip(sizes, [*sizes[1:], 0], strict=True):

            def one(pixel: ir.Value, _: list[ir.Value], size: int = size) -> list[ir.Value]:
                block(pixel, size)
                return [b.add(pixel, I64(size))]

            (at,) = code.for_range(at, b.sub(last, I64(size - 1)), one, [at], step=size)
            if smaller:
                start = b.sub(last, I64(size))
                many = b.icmp_signed(">", b.sub(last, at), I64(smaller))
                ends = b.and_(many, b.icmp_signed(">=", start, first))
                code.when(ends, partial(block, start, size))
                at = b.select(ends, last, at)

    def _product(self, pixels: int, columns: int) -> ir.Function:
        key = (pixels, columns)
        if key not in self.products:
            layer, stage, dot = self.layer, self.layer.product, self.layer.dot
            assert stage is not None
            assert isinstance(dot, VectorDot)
            direct = layer.source is None
            self.products[key] = Product(
                stage,
                layer.isa,
                dot,
                stride=self.pitches.x if direct else layer.tile_stride,
                depth=stage.channels if direct else layer.depth,
                pixels=pixels,
                columns=columns,
                y_pitch=self.pitches.y,
                prefetch=None,
                ahead=None,
                residual=self.added,
                streaming=False,
            ).emit(self.module, f"matmul_{pixels}x{columns}")
        return self.products[key]
