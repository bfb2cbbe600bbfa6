"""The depthwise stage of a piece: a run of output pixels of one row, all channels, into a tile."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.activations import activate
from dnnsep.codegen.emit import F32, I16, I32, I64, POINTER, Code, lane_mask, splat
from dnnsep.codegen.isa import Isa
from dnnsep.codegen.plan import Row, block_channels, blocks, row_stride, tile_is_bf16
from dnnsep.problem import Problem


@dataclass(frozen=True)
class Shape:
    """A piece's width and its columns of the kernel that meet the image, by pixel: two pieces of
    the same shape run the same code."""

    width: int
    taps: tuple[tuple[int, ...], ...]


def shape_of(problem: Problem, row: Row) -> Shape:
    left = problem.padding[2]

    def meets(pixel: int, tap: int) -> bool:
        column = (row.start + pixel) * problem.stride[1] + tap * problem.dilation[1] - left
        return 0 <= column < problem.width

    taps = range(problem.kernel[1])
    return Shape(
        row.width,
        tuple(tuple(tap for tap in taps if meets(pixel, tap)) for pixel in range(row.width)),
    )


def emit_depthwise(
    module: ir.Module, name: str, problem: Problem, isa: Isa, shape: Shape
) -> ir.Function:
    """f(x, weights, tile, first, last): ``x`` is where the kernel's first row meets the image at
    the first pixel's first tap (maybe outside the image, then not read); kernel rows
    [``first``, ``last``) meet the image.

    Weights are as ``pack.depthwise`` has them. Sums run over the kernel's rows, then columns.
    """
    code = Code(module, name, [POINTER, POINTER, POINTER, I64, I64]).internal()
    return _Depthwise(code, problem, isa, shape).emit()


class _Depthwise:
    def __init__(self, code: Code, problem: Problem, isa: Isa, shape: Shape) -> None:
        self.code, self.problem, self.isa, self.shape = code, problem, isa, shape
        self.vector = ir.VectorType(F32, isa.lanes)
        self.parts = block_channels(problem, isa) // isa.lanes
        self.element = I16 if problem.dtype == "bf16" else F32
        # As many sums as fit beside the weights of a kernel's row and an input.
        spare = isa.registers - self.parts * (min(problem.kernel[1], 3) + 1) - 1
        self.pixels_at_once = max(1, min(shape.width, spare // self.parts))

    def emit(self) -> ir.Function:
        code, problem = self.code, self.problem
        x, weights, tile, self.first, self.last = code.arguments
        count, width = blocks(problem, self.isa), block_channels(problem, self.isa)
        full = problem.in_channels // width
        kernel_rows, kernel_columns = problem.kernel
        block_floats = (kernel_rows * kernel_columns + 1) * width

        def copy(q: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            first_block = code.builder.mul(q, I64(count))

            def block(at: ir.Value, mask: ir.Constant | None) -> None:
                number = code.builder.add(first_block, at)
                self._block(
                    code.at(x, code.builder.mul(at, I64(width)), self.element),
                    code.at(weights, code.builder.mul(number, I64(block_floats)), F32),
                    code.at(tile, code.builder.mul(number, I64(width)), self._tile_element()),
                    mask,
                )

            def whole(at: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                block(at, None)
                return []

            if full:
                code.for_range(I64(0), I64(full), whole)
            if full < count:
                block(I64(full), lane_mask(problem.in_channels - full * width, width))
            return []

        if problem.channel_multiplier == 1:
            copy(I64(0), [])
        else:
            code.for_range(I64(0), I64(problem.channel_multiplier), copy)
        return code.end()

    def _tile_element(self) -> ir.Type:
        return I16 if tile_is_bf16(self.problem, self.isa) else F32

    def _block(
        self, x: ir.Value, weights: ir.Value, tile: ir.Value, mask: ir.Constant | None
    ) -> None:
        """A block of channels of all pixels. A block's weights are a row of taps for each kernel
        row and column, and then the bias."""
        taps = self.problem.kernel[0] * self.problem.kernel[1]
        biases = [self._weight(weights, I64(taps), part) for part in range(self.parts)]
        for start in range(0, self.shape.width, self.pixels_at_once):
            pixels = range(start, min(start + self.pixels_at_once, self.shape.width))
            sums = self.code.for_range(
                self.first,
                self.last,
                lambda i, sums, pixels=pixels: self._kernel_row(  # type: ignore[misc]
                    x, weights, mask, i, pixels, sums
                ),
                [bias for _ in pixels for bias in biases],
            )
            for index, pixel in enumerate(pixels):
                parts = sums[index * self.parts : (index + 1) * self.parts]
                self._store(tile, pixel, parts)

    def _weight(self, weights: ir.Value, tap: ir.Value, part: int) -> ir.Value:
        b = self.code.builder
        index = b.add(b.mul(tap, I64(self.parts)), I64(part))
        return self.code.load(self.code.at(weights, index, self.vector), self.vector)

    def _kernel_row(
        self,
        x: ir.Value,
        weights: ir.Value,
        mask: ir.Constant | None,
        i: ir.Value,
        pixels: range,
        sums: list[ir.Value],
    ) -> list[ir.Value]:
        """Add one row of the kernel; every input is loaded once."""
        code, problem, b = self.code, self.problem, self.code.builder
        row_elements = problem.dilation[0] * problem.width * problem.in_channels
        row = code.at(x, b.mul(i, I64(row_elements)), self.element)
        first_tap = b.mul(i, I64(problem.kernel[1]))
        uses: dict[int, list[tuple[int, int]]] = {}
        for pixel in pixels:
            for tap in self.shape.taps[pixel]:
                column = pixel * problem.stride[1] + tap * problem.dilation[1]
                uses.setdefault(column, []).append((pixel, tap))
        factors: dict[int, list[ir.Value]] = {}
        for column in sorted(uses):
            inputs = self._load(code.at(row, column * problem.in_channels, self.element), mask)
            for pixel, tap in uses[column]:
                if tap not in factors:
                    at = b.add(first_tap, I64(tap))
                    factors[tap] = [self._weight(weights, at, part) for part in range(self.parts)]
                for part, value in enumerate(inputs):
                    index = (pixel - pixels.start) * self.parts + part
                    sums[index] = code.fma(value, factors[tap][part], sums[index])
        return sums

    def _load(self, pointer: ir.Value, mask: ir.Constant | None) -> list[ir.Value]:
        """A block of channels in f32; of bf16 the even ones, then the odd ones."""
        code, b, lanes = self.code, self.code.builder, self.isa.lanes
        if self.problem.dtype == "f32":
            return [code.load(pointer, self.vector, mask)]
        halves = code.load(pointer, ir.VectorType(I16, 2 * lanes), mask)
        words = ir.VectorType(I32, lanes)
        pairs = b.bitcast(halves, words)
        even = b.shl(pairs, splat(16, words))
        odd = b.and_(pairs, splat(-65536, words))
        return [b.bitcast(even, self.vector), b.bitcast(odd, self.vector)]

    def _store(self, tile: ir.Value, pixel: int, parts: list[ir.Value]) -> None:
        code = self.code
        values = [activate(code, self.problem.activations[0], part) for part in parts]
        place = code.at(tile, pixel * row_stride(self.problem, self.isa), self._tile_element())
        if tile_is_bf16(self.problem, self.isa):
            kind = ir.VectorType(I16, 2 * self.isa.lanes)
            code.store(
                code.instruction("vcvtne2ps2bf16 $1, $2, $0", kind, values[0], values[1]), place
            )
            return
        for index, value in enumerate(values):
            code.store(value, code.at(place, index, self.vector))
