"""The depthwise stage of bytes: each channel convolved with filters of its own, four taps a
multiplication.

A step multiplies four neighbouring bytes of a word, but a tap's inputs are far from each other in
memory: so four rows of the kernel are *woven*, byte by byte, into words that hold the same channel
under four taps of a column. What is woven of an input column serves every pixel that meets it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.codegen.dots import Dot, byte_dot
from dnnsep.codegen.dots.bytes import FOUR
from dnnsep.codegen.lang.dtype import ByteElement, input_element, nearest, output_element
from dnnsep.codegen.lang.emit import BYTE, F32, I16, I32, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.saturate import packed
from dnnsep.codegen.stages.base import Image, Sink, Source, Taps, Window, told_at_run_time
from dnnsep.codegen.stages.finish import ByteFinish
from dnnsep.dtypes import PRECISIONS, TensorDtype
from dnnsep.quantization import Requantization
from dnnsep.weights import Weights

# Bytes of an x86 vector's lanes, which instructions that weave and pack do not leave.
_LANE = 16
# Up to so many rows and columns the kernel is written out.
_SHORT_KERNEL = 8
# The stage's own weights begin with a vector of the input's zero point.
_HEADER = 64
# Registers of a pixel loop that hold no sums.
_SPARE = 8
# Operations to weave a column, and to finish the sums of a block.
_WEAVE, _FINISH = 8, 20


@dataclass(frozen=True)
class ByteDepthwise(Source):
    """Output channel c * multiplier + k is input channel c convolved with a filter of its own.

    The output lies ``between`` the stages of a problem, or is the problem's. Kernels take no
    multiplier but 1.
    """

    channels: int
    multiplier: int
    window: Window
    activation: str
    dtype: str
    between: bool

    def naive(self, x: Exact, weights: Weights) -> Exact:
        assert weights.quantization is not None
        sums = self._sums(x - weights.quantization.input_of("depthwise").zero_point, weights)
        return self.requantization(weights).naive(sums, self.activation)

    def bound(self, scale: Exact, error: Exact, weights: Weights) -> tuple[Exact, Exact]:
        assert weights.quantization is not None
        zero = abs(weights.quantization.input_of("depthwise").zero_point)
        sizes, errors = (self._sums(of, weights) for of in (scale + zero, error))
        found = self.requantization(weights).bound(sizes, errors, self.activation)
        return np.full_like(found, 255.0), found

    def _sums(self, x: Exact, weights: Weights) -> Exact:
        assert weights.depthwise is not None
        filters = weights.depthwise.astype(np.float64)
        total: Exact | None = None
        for i, j, met in self.window.naive(x):
            product = np.repeat(met, self.multiplier, axis=1) * filters[:, 0, i, j, None, None]
            total = product if total is None else total + product
        assert total is not None
        return total

    def requantization(self, weights: Weights) -> Requantization:
        """Returns how the sums become the output."""
        assert weights.quantization is not None
        bias = weights.depthwise_bias
        return weights.quantization.of_stage("depthwise", self.dtype, bias, self.activation)

    @property
    def target(self) -> TensorDtype:
        """What the output holds."""
        precision = PRECISIONS[self.dtype]
        return precision.between if self.between else precision.destination

    @property
    def finish(self) -> ByteFinish:
        """What becomes of the sums."""
        return ByteFinish(self.activation, self.target)

    @property
    def row_groups(self) -> int:
        """Groups of four rows of the kernel."""
        return -(-self.window.kernel[0] // FOUR)

    def blocks(self, isa: Isa) -> list[tuple[int, int]]:
        """Returns the (first channel, bytes of a vector) of each block of channels: whole vectors,
        then one that is no wider than it has to be."""
        whole = 4 * isa.lanes
        starts = list(range(0, self.channels - whole + 1, whole))
        found = [(start, whole) for start in starts]
        rest = self.channels - len(starts) * whole
        if rest:
            found.append((len(starts) * whole, next(w for w in (16, 32, 64) if w >= rest)))
        return found

    def groups(self, isa: Isa) -> int:
        return len(self.blocks(isa))

    def depth(self, isa: Isa, dot: Dot) -> int:
        return dot.depth(self.channels)

    def order(self, isa: Isa, dot: Dot) -> NDArray[np.int64]:
        places = np.arange(self.depth(isa, dot))
        return np.where(places < self.channels, places, -1)

    def vectors(self, isa: Isa) -> int:
        """Returns the vectors of weights of a column of the kernel in a group of its rows."""
        return FOUR * byte_dot(isa).factors

    def block_bytes(self, isa: Isa, width: int) -> int:
        """Returns the bytes of a block's weights and its table."""
        weights = self.row_groups * self.window.kernel[1] * self.vectors(isa)
        return (weights + self.finish.rows * FOUR) * width

    def packed_bytes(self, isa: Isa, dot: Dot) -> int:
        return _HEADER + sum(self.block_bytes(isa, width) for _, width in self.blocks(isa))

    def pack(self, isa: Isa, dot: Dot, weights: Weights) -> NDArray[Any]:
        """The header; then by block the weights (group of rows, column, vector) as the way of
        multiplying packs them, and the table (vector of sums, row)."""
        assert weights.depthwise is not None
        assert weights.quantization is not None
        (kh, kw), groups, way = self.window.kernel, self.row_groups, byte_dot(isa)
        source, how = weights.quantization.input_of("depthwise"), self.requantization(weights)
        filters = weights.depthwise.reshape(self.channels, kh, kw)
        unsigned = source.unsigned(PRECISIONS[self.dtype].source).zero_point
        table = self.finish.table(how, unsigned, filters.reshape(self.channels, -1))
        header = np.full(_HEADER, source.zero_point).astype(np.uint8)
        content: list[NDArray[np.uint8]] = [header]
        for start, width in self.blocks(isa):
            there = slice(start, min(start + width, self.channels))
            count = there.stop - start
            taps = np.zeros((width, groups * FOUR, kw), np.float32)
            taps[:count, :kh] = filters[there]
            rows = np.zeros((self.finish.rows, width), np.float32)
            rows[:, :count] = table[:, there]
            order = _woven(width)  # (vector of sums, word)
            # (group, column, row of it, vector of sums, word) as columns of small matrices
            words = taps[order].reshape(*order.shape, groups, FOUR, kw).transpose(2, 4, 3, 0, 1)
            for matrix in words.reshape(groups * kw, FOUR, width):
                content.append(way.pack_words(matrix, width // FOUR).view(np.uint8))
            laid = rows[:, order].transpose(1, 0, 2)
            content.append(np.ascontiguousarray(laid).reshape(-1).view(np.uint8))
        return np.concatenate(content)

    def cycles(self, isa: Isa, dot: Dot) -> float:
        """Two operations start each cycle."""
        woven = _WEAVE * min(self.window.kernel[1], self.window.stride[1])
        a_group = self.window.kernel[1] * self.vectors(isa) + woven
        return len(self.blocks(isa)) * (self.row_groups * a_group + _FINISH) / 2

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
        """As Source.emit; weights are as ``pack`` has them. A group is a block of channels."""
        arguments = [POINTER, POINTER, POINTER, I64, I64, *[I64] * by_groups]
        assert not told_at_run_time(image, taps), "there are no general kernels of bytes"
        code = Code(module, name, arguments).internal()
        return _Emitter(code, self, isa, dot, image, taps, sink).emit(by_groups)


def _woven(width: int) -> NDArray[np.int64]:
    """Returns which channel of a block each word of the four woven vectors is of."""
    lanes = np.arange(width).reshape(width // _LANE, FOUR, FOUR)  # (lane, vector, word)
    return lanes.transpose(1, 0, 2).reshape(FOUR, width // FOUR)


@dataclass(frozen=True)
class _Block:
    """A block of channels: addresses of its input at the run's first pixel and tap, its weights and
    its output, the bytes of its vectors, and how many of those are read and written."""

    x: ir.Value
    weights: ir.Value
    target: ir.Value
    width: int
    read: int
    written: int


class _Emitter:
    def __init__(
        self,
        code: Code,
        stage: ByteDepthwise,
        isa: Isa,
        dot: Dot,
        image: Image,
        taps: Taps,
        sink: Sink,
    ) -> None:
        self.code, self.stage, self.isa, self.taps, self.sink = code, stage, isa, taps, sink
        self.window, self.image, self.way = stage.window, image, byte_dot(isa)
        self.depth = stage.depth(isa, dot) if stage.between else stage.channels
        element = input_element(stage.dtype)
        assert isinstance(element, ByteElement)
        self.element, self.finish = element, stage.finish
        self.out = output_element(stage.dtype)
        self.x, self.weights, self.target, self.first, self.last = code.arguments[:5]

    def emit(self, by_groups: bool) -> ir.Function:
        code, b = self.code, self.code.builder
        kh, kw = self.window.kernel
        if max(kh, kw) > _SHORT_KERNEL:
            self._blocks(self._pixel_by_pixel, by_groups)
            return code.end()
        whole = b.and_(
            b.icmp_signed("==", self.first, I64(0)), b.icmp_signed("==", self.last, I64(kh))
        )
        with b.if_else(whole) as (yes, no):
            with yes:
                self._blocks(self._written_out, by_groups)
            with no:
                self._blocks(self._pixel_by_pixel, by_groups)
        return code.end()

    def _blocks(self, run: Callable[[_Block], None], by_groups: bool) -> None:
        """Emits a way to run a block for all of them, or for the one that a call does."""
        code, b, blocks = self.code, self.code.builder, self.stage.blocks(self.isa)
        whole = 4 * self.isa.lanes
        full = self.stage.channels // whole

        def one(at: ir.Value) -> None:
            run(self._block(b.mul(at, I64(whole)), at, whole, whole))

        def tail() -> None:
            start, width = blocks[-1]
            run(self._block(I64(start), I64(full), width, self.stage.channels - start))

        has_tail = len(blocks) > full
        if not by_groups:
            if full:
                code.for_each(0, full, one)
            if has_tail:
                tail()
            return
        number = code.arguments[5]
        if full:
            code.when(b.icmp_signed("<", number, I64(full)), lambda: one(number))
        if has_tail:
            code.when(b.icmp_signed("==", number, I64(full)), tail)

    def _block(self, channel: ir.Value, number: ir.Value, width: int, channels: int) -> _Block:
        code, b = self.code, self.code.builder
        whole = self.stage.block_bytes(self.isa, 4 * self.isa.lanes)
        weights = code.at(self.weights, b.add(b.mul(number, I64(whole)), I64(_HEADER)), BYTE)
        place = code.at(self.target, channel, self.sink.element)
        written = channels
        if self.stage.between:  # whole blocks, of the last one what products read
            written = (
                width
                if channels == width
                else min(width, self.depth % (4 * self.isa.lanes) or width)
            )
        return _Block(code.at(self.x, channel, BYTE), weights, place, width, channels, written)

    def _written_out(self, block: _Block) -> None:
        """Computes a block of all pixels, all rows of the kernel meeting the image."""
        code, b = self.code, self.code.builder
        at_once = max(1, (self.isa.registers - _SPARE) // FOUR)
        count = -(-self.taps.width // at_once)
        bounds = [self.taps.width * n // count for n in range(count + 1)]
        stride, step = self.window.stride[1], self.window.dilation[1]
        pitch = self._pitch
        for start, stop in pairwise(bounds):
            first = self._row(block, 0, I32)
            sums = [list(first) for _ in range(start, stop)]
            uses: dict[int, list[tuple[int, int]]] = {}
            for pixel in range(start, stop):
                for tap in range(self.window.kernel[1]):
                    inside = tap in self.taps.known[pixel]
                    column = pixel * stride + tap * step if inside else -1
                    uses.setdefault(column, []).append((pixel, tap))
            for group in range(self.stage.row_groups):
                rows = range(group * FOUR, min((group + 1) * FOUR, self.window.kernel[0]))
                for column in sorted(uses):
                    if column < 0:
                        words = [b.bitcast(self._zero(block), self._words(block))] * FOUR
                    else:
                        read = [
                            self._load(
                                block,
                                code.at(
                                    block.x, I64(row * pitch + column * self.image.pitch), BYTE
                                ),
                            )
                            for row in rows
                        ]
                        words = self._weave(block, read)
                    parts = [self.way.split(code, word) for word in words]
                    for pixel, tap in uses[column]:
                        number = I64(group * self.window.kernel[1] + tap)
                        sums[pixel - start] = self._add(block, number, parts, sums[pixel - start])
            for pixel in range(start, stop):
                self._store(block, I64(pixel), sums[pixel - start])

    def _pixel_by_pixel(self, block: _Block) -> None:
        """Computes a block pixel by pixel and tap by tap, whatever meets the image: of what does
        not the zero point is read."""
        code, b = self.code, self.code.builder
        (kh, kw), stride, step = self.window.kernel, self.window.stride[1], self.window.dilation[1]
        pitch = I64(self._pitch)
        left, right = self._inside

        def one(pixel: ir.Value) -> None:
            def group(g: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                def tap(at: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                    column = b.add(b.mul(pixel, I64(stride)), b.mul(at, I64(step)))
                    inside = b.and_(
                        b.icmp_signed(">=", column, left), b.icmp_signed("<", column, right)
                    )
                    start = code.at(block.x, b.mul(column, I64(self.image.pitch)), BYTE)
                    read = []
                    for r in range(min(FOUR, kh)):
                        row = b.add(b.mul(g, I64(FOUR)), I64(r))
                        meets = b.and_(
                            b.icmp_signed(">=", row, self.first),
                            b.icmp_signed("<", row, self.last),
                        )
                        place = code.at(start, b.mul(row, pitch), BYTE)
                        there = b.and_(inside, meets)
                        read.append(self._load(block, b.select(there, place, self.weights)))
                    words = self._weave(block, read)
                    parts = [self.way.split(code, word) for word in words]
                    number = b.add(b.mul(g, I64(kw)), at)
                    return self._add(block, number, parts, sums)

                return code.for_range(I64(0), I64(kw), tap, sums)

            groups = I64(self.stage.row_groups)
            sums = code.for_range(I64(0), groups, group, self._row(block, 0, I32))
            self._store(block, pixel, sums)

        code.for_each(0, self.taps.width, one)

    @property
    def _pitch(self) -> int:
        """Bytes from a row of the kernel to the next in the input."""
        return self.image.known_width * self.image.pitch * self.window.dilation[0]

    @property
    def _inside(self) -> tuple[ir.Value, ir.Value]:
        """The range of input columns, counted from the first pixel's first tap, that are in the
        image, as far as the run meets them."""
        stride, step = self.window.stride[1], self.window.dilation[1]
        met = [
            pixel * stride + tap * step
            for pixel, columns in enumerate(self.taps.known)
            for tap in columns
        ]
        return (I64(min(met)), I64(max(met) + 1)) if met else (I64(0), I64(0))

    def _words(self, block: _Block) -> ir.VectorType:
        return ir.VectorType(I32, block.width // FOUR)

    def _load(self, block: _Block, place: ir.Value) -> ir.Value:
        """Loads the channels of a block, as unsigned bytes."""
        lanes = block.read if block.read < block.width else None
        value = self.code.load(place, ir.VectorType(BYTE, block.width), lanes)
        return self.element.moved(self.code, value)

    def _zero(self, block: _Block) -> ir.Value:
        """Loads the input's zero point in every byte."""
        value = self.code.load(self.weights, ir.VectorType(BYTE, block.width))
        return self.element.moved(self.code, value)

    def _weave(self, block: _Block, rows: list[ir.Value]) -> list[ir.Value]:
        """Returns the four vectors of words that hold up to four rows' bytes of a channel; where
        there are fewer, weights of 0 make the others count for nothing."""
        rows = (rows * FOUR)[:FOUR] if len(rows) < 3 else [*rows, *rows[-1:]][:FOUR]
        pairs = ir.VectorType(I16, block.width // 2)
        b = self.code.builder
        halves = [
            [b.bitcast(v, pairs) for v in self._interleaved(*rows[n : n + 2])] for n in (0, 2)
        ]
        return [
            b.bitcast(v, self._words(block))
            for first, second in zip(*halves, strict=True)
            for v in self._interleaved(first, second)
        ]

    def _interleaved(self, first: ir.Value, second: ir.Value) -> list[ir.Value]:
        """Returns the lower halves of each lane of two vectors interleaved, and the upper ones."""
        count = first.type.count
        size = 1 if first.type.element == BYTE else 2
        of_lane = _LANE // size
        found = []
        for half in range(2):
            order = [
                lane + half * of_lane // 2 + n + source * count
                for lane in range(0, count, of_lane)
                for n in range(of_lane // 2)
                for source in range(2)
            ]
            mask = ir.Constant(ir.VectorType(I32, count), [I32(index) for index in order])
            found.append(self.code.builder.shuffle_vector(first, second, mask))
        return found

    def _add(
        self, block: _Block, number: ir.Value, parts: list[list[ir.Value]], sums: list[ir.Value]
    ) -> list[ir.Value]:
        """Adds the products of a column of a group of the kernel's rows, the ``number``-th."""
        code, b, each = self.code, self.code.builder, self.way.factors
        words = self._words(block)
        first = code.at(block.weights, b.mul(number, I64(FOUR * each)), words)
        found = []
        for v, total in enumerate(sums):
            for n, part in enumerate(parts[v]):
                factor = code.load(code.at(first, v * each + n, words), words)
                total = self.way.step(code, total, part, factor)
            found.append(total)
        return found

    def _row(self, block: _Block, row: int, kind: ir.Type = F32) -> list[ir.Value]:
        """Loads a row of the table for the four vectors of sums."""
        return [self._of_table(block, v, row, kind) for v in range(FOUR)]

    def _of_table(self, block: _Block, v: int, row: int, kind: ir.Type = F32) -> ir.Value:
        vector = ir.VectorType(kind, block.width // FOUR)
        weights = self.stage.row_groups * self.window.kernel[1] * self.stage.vectors(self.isa)
        place = self.code.at(block.weights, weights + v * self.finish.rows + row, vector)
        return self.code.load(place, vector)

    def _store(self, block: _Block, pixel: ir.Value, sums: list[ir.Value]) -> None:
        """Finishes the sums of a pixel, and writes them."""
        code, b = self.code, self.code.builder
        place = code.at(block.target, b.mul(pixel, I64(self.sink.stride)), self.sink.element)
        rows = [partial(self._of_table, block, v) for v in range(FOUR)]
        if not self.finish.to_bytes:
            numbers = [
                self.finish.value(code, total, row) for total, row in zip(sums, rows, strict=True)
            ]
            self._store_numbers(block, place, numbers)
            return
        steps = [self.finish.steps(code, total, row) for total, row in zip(sums, rows, strict=True)]
        value = packed(code, [nearest(code, value) for value in steps])
        value = self.finish.limited(code, value, partial(self._of_table, block, 0))
        if not self.stage.between:
            assert isinstance(self.out, ByteElement)
            value = self.out.moved(code, value)
        code.store(value, place, block.written if block.written < block.width else None)

    def _store_numbers(self, block: _Block, place: ir.Value, values: list[ir.Value]) -> None:
        """Writes f32, which weaving leaves in fours."""
        for v, value in enumerate(values):
            for lane in range(block.width // _LANE):
                start = lane * _LANE + v * FOUR
                there = min(FOUR, block.read - start)
                if there <= 0:
                    continue
                order = [I32(lane * FOUR + n) for n in range(FOUR)]
                mask = ir.Constant(ir.VectorType(I32, FOUR), order)
                four = self.code.builder.shuffle_vector(value, value, mask)
                self.code.store(four, self.code.at(place, start, F32), there)
