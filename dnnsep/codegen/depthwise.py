"""The depthwise stage of a piece: a run of output pixels of one row, all channels, into a tile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from llvmlite import ir

from dnnsep.codegen.lang.activate import LONG, activate
from dnnsep.codegen.lang.bf16 import to_bf16
from dnnsep.codegen.lang.emit import F32, I16, I32, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.plan import Row, block_channels, blocks, row_stride, tile_is_bf16
from dnnsep.problem import Problem
from dnnsep.single import Depthwise

# Up to so many columns the kernel's rows are written out, with their weights in registers.
_SHORT_KERNEL = 8


@dataclass(frozen=True)
class Shape:
    """A piece's width and, by pixel, the columns of the kernel that meet the image, from the first
    to before the last: two pieces of the same shape run the same code."""

    width: int
    taps: tuple[range, ...]


def shape_of(problem: Problem, row: Row) -> Shape:
    left, step = problem.padding[2], problem.dilation[1]

    def meets(pixel: int) -> range:
        first = left - (row.start + pixel) * problem.stride[1]  # of tap 0: so far outside
        start = max(0, -(-first // step))
        stop = min(problem.kernel[1], -(-(first + problem.width) // step))
        return range(start, max(start, stop))

    return Shape(row.width, tuple(meets(pixel) for pixel in range(row.width)))


def emit_depthwise(
    module: ir.Module, name: str, problem: Problem, isa: Isa, shape: Shape
) -> ir.Function:
    """f(x, weights, tile, first, last): ``x`` is where the kernel's first row meets the image at
    the first pixel's first tap (maybe outside the image, then not read); kernel rows
    [``first``, ``last``) meet the image.

    Weights are as ``pack`` has them. Sums run over the kernel's rows, then columns.
    """
    code = Code(module, name, [POINTER, POINTER, POINTER, I64, I64]).internal()
    return _Depthwise(code, problem, isa, shape).emit()


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


class _Depthwise:
    def __init__(self, code: Code, problem: Problem, isa: Isa, shape: Shape) -> None:
        self.code, self.problem, self.isa, self.shape = code, problem, isa, shape
        self.vector = ir.VectorType(F32, isa.lanes)
        self.width = block_channels(problem, isa)
        self.parts = self.width // isa.lanes
        self.taps = problem.kernel[0] * problem.kernel[1]
        self.element = I16 if problem.dtype == "bf16" else F32
        self.tile_element = I16 if tile_is_bf16(problem, isa) else F32
        if isinstance(problem, Depthwise):
            self.tile_element = self.element
        self.stride = row_stride(problem, isa)
        self.short = problem.kernel[1] <= _SHORT_KERNEL

    def emit(self) -> ir.Function:
        code = self.code
        x, weights, tile, self.first, self.last = code.arguments
        count = blocks(self.problem, self.isa)
        full = self.problem.in_channels // self.width
        together = self._blocks_together(full)
        many = full // together * together
        block_floats = (self.taps + 1) * self.width

        def copy(q: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            first_block = code.builder.mul(q, I64(count))

            def take(at: ir.Value, together: int, lanes: int | None = None) -> None:
                number = code.builder.add(first_block, at)
                self._blocks(
                    code.at(x, code.builder.mul(at, I64(self.width)), self.element),
                    code.at(weights, code.builder.mul(number, I64(block_floats)), F32),
                    code.at(tile, code.builder.mul(number, I64(self.width)), self.tile_element),
                    together,
                    lanes,
                )

            code.for_each(0, many, lambda at: take(at, together), step=together)
            code.for_each(many, full, lambda at: take(at, 1))
            if full < count:
                take(I64(full), 1, self.problem.in_channels - full * self.width)
            return []

        code.for_range(I64(0), I64(self.problem.channel_multiplier), copy)
        return code.end()

    def _blocks_together(self, full: int) -> int:
        """Blocks of channels taken at once.

        Several: where pixels are a large power of two apart their lines share a few places of the
        L1 cache, so neighbouring lines have to be used while they are there.
        """
        most = self.isa.registers // (8 * self.parts)
        if self.problem.kernel[1] > 3:
            most //= 2
        if not self.short:
            most = 1
        most = max(1, min(most, full))
        even = [n for n in range(most, 0, -1) if full % n == 0]
        return even[0] if even and 2 * even[0] >= most else most

    def _blocks(
        self,
        x: ir.Value,
        weights: ir.Value,
        tile: ir.Value,
        together: int,
        lanes: int | None,
    ) -> None:
        """Some blocks of channels of all pixels; of the only one maybe just the first ``lanes``."""
        vectors = together * self.parts
        biases = [self._weight(weights, I64(self.taps), v) for v in range(vectors)]
        in_registers = vectors * (self.problem.kernel[1] if self.short else 1)
        at_once = max(1, (self.isa.registers - in_registers - 2) // vectors)
        count = -(-self.shape.width // at_once)
        bounds = [self.shape.width * i // count for i in range(count + 1)]
        add_row = self._short_row if self.short else self._long_row
        for start, stop in pairwise(bounds):
            pixels = range(start, stop)

            def row(
                i: ir.Value, sums: list[ir.Value], pixels: range = pixels
            ) -> list[list[ir.Value]]:
                elements = self.problem.dilation[0] * self.problem.width * self.problem.in_channels
                line = self.code.at(x, self.code.builder.mul(i, I64(elements)), self.element)
                first_tap = self.code.builder.mul(i, I64(self.problem.kernel[1]))
                return add_row(_KernelRow(line, weights, first_tap, pixels, lanes), sums)

            sums = self.code.for_range(
                self.first, self.last, row, [bias for _ in pixels for bias in biases]
            )
            rows = [sums[i : i + vectors] for i in range(0, len(sums), vectors)]
            place = self._row(tile, I64(start))
            store = partial(self._store, place, lanes)
            if self.problem.activations[0] in LONG:
                self.code.for_rows(rows, store)
            else:
                for index, values in enumerate(rows):
                    store(I64(index), values)

    def _short_row(self, row: _KernelRow, sums: list[ir.Value]) -> list[ir.Value]:
        """Add one row of the kernel, written out; every input is loaded once."""
        vectors = len(sums) // len(row.pixels)
        uses: dict[int, list[tuple[int, int]]] = {}
        for pixel in row.pixels:
            for tap in self.shape.taps[pixel]:
                column = pixel * self.problem.stride[1] + tap * self.problem.dilation[1]
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
        """Add one row of the kernel by a loop over the columns that meet the image for all pixels,
        between loops over those that only do for single ones."""
        code, b = self.code, self.code.builder
        pixels = row.pixels
        vectors = len(sums) // len(pixels)
        stride, step = self.problem.stride[1], self.problem.dilation[1]

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
                part = slice(
                    (some.start - pixels.start) * vectors, (some.stop - pixels.start) * vectors
                )
                sums[part] = code.for_range(I64(taps.start), I64(taps.stop), tap, sums[part])

        ranges = [self.shape.taps[pixel] for pixel in pixels]
        start, stop = max(r.start for r in ranges), min(r.stop for r in ranges)
        if start >= stop:  # none meets it for all
            start = stop = self.problem.kernel[1]
        for pixel, r in zip(pixels, ranges, strict=True):
            add(range(r.start, min(start, r.stop)), range(pixel, pixel + 1))
        add(range(start, stop), pixels)
        for pixel, r in zip(pixels, ranges, strict=True):
            add(range(stop, r.stop), range(pixel, pixel + 1))
        return sums

    def _weight(self, weights: ir.Value, tap: ir.Value, v: int) -> ir.Value:
        """A block's weights are a row of vectors for each tap, and then the bias."""
        b = self.code.builder
        block, part = divmod(v, self.parts)
        place = b.add(b.mul(tap, I64(self.parts)), I64(block * (self.taps + 1) * self.parts + part))
        return self.code.load(self.code.at(weights, place, self.vector), self.vector)

    def _load(self, row: _KernelRow, column: ir.Value, vectors: int) -> list[ir.Value]:
        """Blocks of channels of a pixel in f32; of bf16 a block's even ones, then its odd ones."""
        code, b = self.code, self.code.builder
        pixel = code.at(row.line, b.mul(column, I64(self.problem.in_channels)), self.element)
        found: list[ir.Value] = []
        for block in range(vectors // self.parts):
            place = code.at(pixel, block * self.width, self.element)
            if self.problem.dtype == "f32":
                found.append(code.load(place, self.vector, row.lanes))
                continue
            words = ir.VectorType(I32, self.isa.lanes)
            halves = code.load(place, ir.VectorType(I16, self.width), row.lanes)
            pairs = b.bitcast(halves, words)
            even, odd = (
                b.shl(pairs, code.splat(16, words)),
                b.and_(pairs, code.splat(-65536, words)),
            )
            found += [b.bitcast(even, self.vector), b.bitcast(odd, self.vector)]
        return found

    def _row(self, tile: ir.Value, pixel: ir.Value) -> ir.Value:
        elements = self.code.builder.mul(pixel, I64(self.stride))
        return self.code.at(tile, elements, self.tile_element)

    def _store(
        self, tile: ir.Value, lanes: int | None, pixel: ir.Value, sums: list[ir.Value]
    ) -> None:
        """Vectors lie one after the other in the tile; of bf16 a block's two make one. A tile holds
        whole vectors, an output just the ``lanes`` that there are."""
        code, place = self.code, self._row(tile, pixel)
        values = [activate(code, self.problem.activations[0], total) for total in sums]
        if isinstance(self.problem, Depthwise) and self.problem.dtype == "bf16":
            self._store_output(place, lanes, values)
            return
        if not tile_is_bf16(self.problem, self.isa):
            there = lanes if isinstance(self.problem, Depthwise) else None
            for index, value in enumerate(values):
                code.store(value, code.at(place, index, self.vector), there)
            return
        pair = ir.VectorType(I16, self.width)
        for index in range(0, len(values), 2):
            low, high = values[index : index + 2]
            both = code.instruction("vcvtne2ps2bf16 $1, $2, $0", pair, low, high)
            code.store(both, code.at(place, index // 2, pair))

    def _store_output(self, place: ir.Value, lanes: int | None, values: list[ir.Value]) -> None:
        """In bf16, the even and odd channels of each block together again."""
        code = self.code
        order = [half * self.isa.lanes + at for at in range(self.isa.lanes) for half in range(2)]
        mask = ir.Constant(ir.VectorType(I32, self.width), [I32(index) for index in order])
        for index in range(0, len(values), 2):
            low, high = (to_bf16(code, v, self.isa.dot_bf16) for v in values[index : index + 2])
            both = code.builder.shuffle_vector(low, high, mask)
            code.store(both, code.at(place, index // 2, both.type), lanes)
