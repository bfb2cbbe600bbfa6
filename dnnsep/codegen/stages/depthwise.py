"""The depthwise stage: each channel convolved with filters of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.activations import ACTIVATIONS, Exact
from dnnsep.codegen.dots import Dot
from dnnsep.codegen.lang.activate import LONG
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.stages.base import (
    Image,
    Sink,
    Source,
    Taps,
    Window,
    bound_of_sum,
    told_at_run_time,
)
from dnnsep.codegen.stages.residual import activated
from dnnsep.weights import Weights

# Up to so many columns the kernel's rows are written out, with their weights in registers.
_SHORT_KERNEL = 8

# Cycles of the stage for one of its multiply-adds, which start two a cycle: each needs a load.
_CYCLES = 1.4


@dataclass(frozen=True)
class _Grouped:
    """Blocks of channels, ``full`` of ``count`` of them full, in groups of ``together``, then full
    ones alone, then the one that is not full."""

    count: int
    full: int
    together: int

    @property
    def many(self) -> int:
        """Blocks in groups."""
        return self.full // self.together * self.together

    @property
    def groups(self) -> int:
        return self.many // self.together + self.count - self.many


@dataclass(frozen=True)
class Depthwise(Source):
    """Output channel c * multiplier + k is input channel c convolved with a filter of its own.

    In a tile each of the multiplier's copies of the channels comes as a whole, so that the input is
    read in order; within a block channels stay as ``Element.load_block`` gives them.
    """

    channels: int
    multiplier: int
    window: Window
    activation: str
    dtype: str

    def naive(self, x: Exact, weights: Weights) -> Exact:
        assert weights.depthwise is not None
        filters = weights.depthwise.astype(np.float64)
        y: Exact | None = None
        for i, j, met in self.window.naive(x):
            product = np.repeat(met, self.multiplier, axis=1) * filters[:, 0, i, j, None, None]
            y = product if y is None else y + product
        assert y is not None
        if weights.depthwise_bias is not None:
            y = y + weights.depthwise_bias.astype(np.float64)[:, None, None]
        return ACTIVATIONS[self.activation].naive(y)

    def bound(self, scale: Exact, error: Exact, weights: Weights) -> tuple[Exact, Exact]:
        sums = Depthwise(self.channels, self.multiplier, self.window, "none", self.dtype)
        carried = sums.naive(error, Weights(depthwise=weights.depthwise))
        terms = self.window.taps
        return bound_of_sum(sums.naive(scale, weights), carried, terms, self.activation, self.dtype)

    def width(self, isa: Isa) -> int:
        """Returns the channels of a block."""
        return ELEMENTS[self.dtype].block_vectors * isa.lanes

    def blocks(self, isa: Isa) -> int:
        """Returns the blocks of channels in each of the multiplier's copies."""
        return -(-self.channels // self.width(isa))

    def grouped(self, isa: Isa) -> _Grouped:
        """Returns how the blocks of a copy are taken.

        Several at once: where pixels are a large power of two apart their lines share a few places
        of the L1 cache, so neighbouring lines have to be used while they are there.
        """
        full = self.channels // self.width(isa)
        most = isa.registers // (8 * ELEMENTS[self.dtype].block_vectors)
        if self.window.kernel[1] > 3:
            most //= 2
        if self.window.kernel[1] > _SHORT_KERNEL:
            most = 1
        most = max(1, min(most, full))
        even = [n for n in range(most, 0, -1) if full % n == 0]
        together = even[0] if even and 2 * even[0] >= most else most
        return _Grouped(self.blocks(isa), full, together)

    def groups(self, isa: Isa) -> int:
        return self.multiplier * self.grouped(isa).groups

    def depth(self, isa: Isa, dot: Dot) -> int:
        return self.multiplier * self.blocks(isa) * self.width(isa)

    def order(self, isa: Isa, dot: Dot) -> NDArray[np.int64]:
        starts = np.arange(self.blocks(isa)) * self.width(isa)
        inputs = (starts[:, None] + ELEMENTS[self.dtype].block_order(isa)).reshape(-1)
        copies = [
            np.where(inputs < self.channels, inputs * self.multiplier + copy, -1)
            for copy in range(self.multiplier)
        ]
        return np.concatenate(copies)

    def pack(self, isa: Isa, dot: Dot, weights: Weights) -> NDArray[Any]:
        """Blocks of (taps + 1, channels of a block) in f32: the taps, then the bias."""
        assert weights.depthwise is not None
        order, taps = self.order(isa, dot), self.window.taps
        rows = np.zeros((taps + 1, len(order)), np.float32)
        there = order >= 0
        rows[:taps, there] = weights.depthwise.reshape(-1, taps).T[:, order[there]]
        if weights.depthwise_bias is not None:
            rows[taps, there] = weights.depthwise_bias[order[there]]
        blocks = rows.reshape(taps + 1, -1, self.width(isa)).transpose(1, 0, 2)
        return np.ascontiguousarray(blocks).reshape(-1)

    def packed_bytes(self, isa: Isa, dot: Dot) -> int:
        return 4 * self.depth(isa, dot) * (self.window.taps + 1)

    def cycles(self, isa: Isa, dot: Dot) -> float:
        vectors = self.blocks(isa) * self.multiplier * ELEMENTS[self.dtype].block_vectors
        return vectors * self.window.taps / 2 * _CYCLES

    def emit(
        self,
        module: ir.Module,
        name: str,
        isa: Isa,
        dot: Dot,
        image: Image,
        taps: Taps,
        sink: Sink,
        by_groups: bool = False,
    ) -> ir.Function:
        """As Source.emit; weights are as ``pack`` has them. Sums run over the kernel's rows, then
        its columns, from the bias on. A group is some blocks of channels."""
        arguments = [POINTER, POINTER, POINTER, I64, I64, *[I64] * by_groups]
        arguments += [POINTER] * (sink.residual is not None)
        arguments += [I64] * told_at_run_time(image, taps)
        code = Code(module, name, arguments).internal()
        emitter = _Emitter(code, self, isa, image, taps, sink)
        return emitter.emit_group() if by_groups else emitter.emit()


@dataclass(frozen=True)
class _KernelRow:
    """A row of the kernel for some pixels and blocks of channels: ``line`` is the input under its
    first tap at the piece's first pixel, ``first_tap`` its number among all taps; ``lanes`` are as
    for ``_blocks``."""

    line: ir.Value
    weights: ir.Value
    first_tap: ir.Value
    pixels: range
    lanes: int | None


class _Emitter:
    def __init__(
        self, code: Code, stage: Depthwise, isa: Isa, image: Image, taps: Taps, sink: Sink
    ) -> None:
        self.code, self.stage, self.isa, self.taps, self.sink = code, stage, isa, taps, sink
        self.window, self.channels = stage.window, stage.channels
        self.image = image
        self.element = ELEMENTS[stage.dtype]
        self.vector = ir.VectorType(F32, isa.lanes)
        self.width = stage.width(isa)
        self.block_vectors = self.element.block_vectors
        self.short = self.window.kernel[1] <= _SHORT_KERNEL

    def emit(self) -> ir.Function:
        code, blocks = self.code, self.stage.grouped(self.isa)

        def copy(q: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            first_block = code.builder.mul(q, I64(blocks.count))

            def take(at: ir.Value, together: int, lanes: int | None = None) -> None:
                self._take(first_block, at, together, lanes)

            code.for_each(
                0, blocks.many, lambda at: take(at, blocks.together), step=blocks.together
            )
            code.for_each(blocks.many, blocks.full, lambda at: take(at, 1))
            if blocks.full < blocks.count:
                take(I64(blocks.full), 1, self._tail)
            return []

        code.for_range(I64(0), I64(self.stage.multiplier), copy)
        return code.end()

    def emit_group(self) -> ir.Function:
        """Emits one of the groups, whose number is the last argument."""
        code, b, blocks = self.code, self.code.builder, self.stage.grouped(self.isa)
        number = code.arguments[-1]
        copy, group = b.sdiv(number, I64(blocks.groups)), b.srem(number, I64(blocks.groups))
        first_block = b.mul(copy, I64(blocks.count))
        several = blocks.many // blocks.together
        single = b.add(b.sub(group, I64(several)), I64(blocks.many))

        def when_one_of(groups: range, take: Callable[[], None]) -> None:
            if groups:
                after = b.icmp_signed(">=", group, I64(groups.start))
                code.when(b.and_(after, b.icmp_signed("<", group, I64(groups.stop))), take)

        singles = several + blocks.full - blocks.many
        start = b.mul(group, I64(blocks.together))
        when_one_of(range(several), lambda: self._take(first_block, start, blocks.together))
        when_one_of(range(several, singles), lambda: self._take(first_block, single, 1))
        rest = range(singles, blocks.groups)
        when_one_of(rest, lambda: self._take(first_block, I64(blocks.full), 1, self._tail))
        return code.end()

    @property
    def _tail(self) -> int:
        """Channels of the last block where it is not full."""
        return self.channels % self.width

    def _take(
        self, first_block: ir.Value, at: ir.Value, together: int, lanes: int | None = None
    ) -> None:
        """Emits the blocks of one of the multiplier's copies, whose first block is
        ``first_block``, from the block ``at`` on."""
        code, b = self.code, self.code.builder
        x, weights, target, self.first, self.last, *more = code.arguments
        more = more[: len(more) - told_at_run_time(self.image, self.taps)]
        number = b.add(first_block, at)
        block_floats = (self.window.taps + 1) * self.width
        if self.sink.residual is not None:
            self.added = code.at(more[-1], b.mul(number, I64(self.width)), self.element.type)
        self._blocks(
            code.at(x, b.mul(at, I64(self.width)), self.element.type),
            code.at(weights, b.mul(number, I64(block_floats)), F32),
            code.at(target, b.mul(number, I64(self.width)), self.sink.element),
            together,
            lanes,
        )

    def _blocks(
        self,
        x: ir.Value,
        weights: ir.Value,
        target: ir.Value,
        together: int,
        lanes: int | None,
    ) -> None:
        """Computes some blocks of channels of all pixels; of a single block maybe just the first
        ``lanes`` channels."""
        vectors = together * self.block_vectors
        biases = [self._weight(weights, I64(self.window.taps), v) for v in range(vectors)]
        in_registers = vectors * (self.window.kernel[1] if self.short else 1)
        at_once = max(1, (self.isa.registers - in_registers - 2) // vectors)
        count = -(-self.taps.width // at_once)
        bounds = [self.taps.width * i // count for i in range(count + 1)]
        add_row = self._short_row if self.short else self._long_row
        if self.taps.columns is None:
            add_row = self._told_row
        width, _ = self._told
        for start, stop in pairwise(bounds):
            pixels = range(start, stop)

            def row(
                i: ir.Value, sums: list[ir.Value], pixels: range = pixels
            ) -> list[list[ir.Value]]:
                b, each = self.code.builder, self.window.dilation[0] * self.image.pitch
                line = self.code.at(x, b.mul(i, b.mul(width, I64(each))), self.element.type)
                first_tap = b.mul(i, I64(self.window.kernel[1]))
                return add_row(_KernelRow(line, weights, first_tap, pixels, lanes), sums)

            sums = self.code.for_range(
                self.first, self.last, row, [bias for _ in pixels for bias in biases]
            )
            rows = [sums[i : i + vectors] for i in range(0, len(sums), vectors)]
            store = partial(self._store, target, lanes, I64(start))
            if self.stage.activation in LONG:
                self.code.for_rows(rows, store)
            else:
                for index, values in enumerate(rows):
                    store(I64(index), values)

    @property
    def _told(self) -> tuple[ir.Value, list[ir.Value]]:
        """The image's width, and the columns that meet it where they are told at run time."""
        count = told_at_run_time(self.image, self.taps)
        told = list(self.code.arguments[len(self.code.arguments) - count :])
        width = told.pop(0) if self.image.width is None else I64(self.image.width)
        return width, told

    def _told_row(self, row: _KernelRow, sums: list[ir.Value]) -> list[ir.Value]:
        """Adds one row of the kernel to a single pixel, by a loop over the columns that are told to
        meet the image."""
        code, b, (_, (first, end)) = self.code, self.code.builder, self._told

        def tap(at: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            number = b.add(row.first_tap, at)
            inputs = self._load(row, b.mul(at, I64(self.window.dilation[1])), len(sums))
            return [
                code.fma(inputs[v], self._weight(row.weights, number, v), total)
                for v, total in enumerate(sums)
            ]

        return code.for_range(first, end, tap, sums)

    def _short_row(self, row: _KernelRow, sums: list[ir.Value]) -> list[ir.Value]:
        """Adds one row of the kernel, written out; every input is loaded once."""
        vectors = len(sums) // len(row.pixels)
        uses: dict[int, list[tuple[int, int]]] = {}
        for pixel in row.pixels:
            for tap in self.taps.known[pixel]:
                column = pixel * self.window.stride[1] + tap * self.window.dilation[1]
                uses.setdefault(column, []).append((pixel, tap))
        factors: dict[int, list[ir.Value]] = {}
        for column in sorted(uses):
            inputs = self._load(row, I64(column), vectors)
            for pixel, tap in uses[column]:
                if tap not in factors:
                    at = self.code.builder.add(row.first_tap, I64(tap))
                    factors[tap] = [self._weight(row.weights, at, v) for v in range(vectors)]
                for v in range(vectors):
                    index = (pixel - row.pixels.start) * vectors + v
                    sums[index] = self.code.fma(inputs[v], factors[tap][v], sums[index])
        return sums

    def _long_row(self, row: _KernelRow, sums: list[ir.Value]) -> list[ir.Value]:
        """Adds one row of the kernel by a loop over the columns that meet the image for all pixels,
        between loops over those that only do for single ones."""
        code, b = self.code, self.code.builder
        pixels = row.pixels
        vectors = len(sums) // len(pixels)
        stride, step = self.window.stride[1], self.window.dilation[1]

        def add(taps: range, some: range) -> None:
            def tap(at: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                number = b.add(row.first_tap, at)
                factors = [self._weight(row.weights, number, v) for v in range(vectors)]
                moved = b.mul(at, I64(step))
                for index, pixel in enumerate(some):
                    column = b.add(moved, I64(pixel * stride))
                    inputs = self._load(row, column, vectors)
                    for v in range(vectors):
                        place = index * vectors + v
                        sums[place] = code.fma(inputs[v], factors[v], sums[place])
                return sums

            if taps:
                span = slice(
                    (some.start - pixels.start) * vectors, (some.stop - pixels.start) * vectors
                )
                sums[span] = code.for_range(I64(taps.start), I64(taps.stop), tap, sums[span])

        ranges = [self.taps.known[pixel] for pixel in pixels]
        start, stop = max(r.start for r in ranges), min(r.stop for r in ranges)
        if start >= stop:  # none meets it for all
            start = stop = self.window.kernel[1]
        for pixel, r in zip(pixels, ranges, strict=True):
            add(range(r.start, min(start, r.stop)), range(pixel, pixel + 1))
        add(range(start, stop), pixels)
        for pixel, r in zip(pixels, ranges, strict=True):
            add(range(stop, r.stop), range(pixel, pixel + 1))
        return sums

    def _weight(self, weights: ir.Value, tap: ir.Value, v: int) -> ir.Value:
        """Loads a vector of a tap's weights, or of the biases, which follow the last tap."""
        b = self.code.builder
        block, vector = divmod(v, self.block_vectors)
        start = block * (self.window.taps + 1) * self.block_vectors + vector
        place = b.add(b.mul(tap, I64(self.block_vectors)), I64(start))
        return self.code.load(self.code.at(weights, place, self.vector), self.vector)

    def _load(self, row: _KernelRow, column: ir.Value, vectors: int) -> list[ir.Value]:
        """Loads blocks of channels of a pixel of the input, as vectors of f32."""
        elements = self.code.builder.mul(column, I64(self.image.pitch))
        pixel = self.code.at(row.line, elements, self.element.type)
        return self._load_blocks(pixel, vectors, row.lanes)

    def _load_blocks(self, pixel: ir.Value, vectors: int, lanes: int | None) -> list[ir.Value]:
        loaded: list[ir.Value] = []
        for block in range(vectors // self.block_vectors):
            place = self.code.at(pixel, block * self.width, self.element.type)
            loaded += self.element.load_block(self.code, self.isa, place, lanes)
        return loaded

    def _store(
        self,
        target: ir.Value,
        lanes: int | None,
        start: ir.Value,
        index: ir.Value,
        sums: list[ir.Value],
    ) -> None:
        """Finishes the sums of the index-th pixel from the pixel ``start`` on, and writes them."""
        code, b = self.code, self.code.builder
        residual, pixel = self.sink.residual, b.add(start, index)
        place = code.at(target, b.mul(pixel, I64(self.sink.stride)), self.sink.element)
        added: list[ir.Value] = []
        if residual is not None:
            row = code.at(self.added, b.mul(pixel, I64(residual.pitch)), self.element.type)
            added = self._load_blocks(row, len(sums), lanes)
        activation, rough = self.stage.activation, self.stage.dtype == "bf16"
        values = [
            activated(code, activation, total, residual, partial(added.__getitem__, v), rough)
            for v, total in enumerate(sums)
        ]
        block = ir.VectorType(self.sink.element, self.width)
        for number in range(0, len(values), self.block_vectors):
            of_block = values[number : number + self.block_vectors]
            at = code.at(place, number // self.block_vectors, block)
            self.sink.store(code, of_block, at, lanes)
