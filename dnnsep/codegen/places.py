"""Where a plan's pieces are in memory: emits the arithmetic from a piece's number to addresses."""

from __future__ import annotations

from itertools import groupby

from llvmlite import ir

from dnnsep.codegen.lang.emit import F32, I16, I64, Code
from dnnsep.codegen.plan import Plan
from dnnsep.problem import Problem


class Places:
    """Pieces are numbered along a row of output pixels, then by rows, over all images; rows too.
    A piece's ``place`` is its number along its row, 0 for one of short rows."""

    def __init__(self, code: Code, problem: Problem, plan: Plan) -> None:
        self.code, self.problem, self.plan = code, problem, plan
        self.element = I16 if problem.dtype == "bf16" else F32
        _, _, self.out_height, self.out_width = problem.output_shape

    def row_and_place(self, piece: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The row of a piece's first pixel and the piece's place along it."""
        b, count = self.code.builder, len(self.plan.rows)
        if self.plan.short_rows:
            return b.sdiv(self.first_pixel(piece), I64(self.out_width)), I64(0)
        return b.sdiv(piece, I64(count)), b.srem(piece, I64(count))

    def first_pixel(self, piece: ir.Value) -> ir.Value:
        b = self.code.builder
        if self.plan.short_rows:
            pixels = b.mul(piece, I64(self.problem.out_pixels))
            return b.sdiv(pixels, I64(self.plan.pieces))
        row, place = self.row_and_place(piece)
        return b.add(b.mul(row, I64(self.out_width)), self._start(place))

    def rows_of(self, first: ir.Value, last: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The first row of the pieces [first, last) and the one after their last."""
        b, width = self.code.builder, I64(self.out_width)
        last_pixel = b.sub(self.first_pixel(last), I64(1))
        return b.sdiv(self.first_pixel(first), width), b.add(b.sdiv(last_pixel, width), I64(1))

    def sizes(self, piece: ir.Value) -> tuple[ir.Value, list[tuple[int, int]]]:
        """A value and the (end, pixels) of pieces for which it is below the end, in order."""
        plan, b = self.plan, self.code.builder
        if plan.short_rows:
            pixels = b.sub(self.first_pixel(b.add(piece, I64(1))), self.first_pixel(piece))
            least = self.problem.out_pixels // plan.pieces
            return pixels, [(n + 1, n) for n in range(least, plan.pixels + 1)]
        found, end = [], 0
        for width, group in groupby(row.width for row in plan.rows):
            end += len(list(group))
            found.append((end, width))
        return b.srem(piece, I64(len(plan.rows))), found

    def above(self, row: ir.Value) -> ir.Value:
        """The input row under the kernel's first row, in its image; maybe above it."""
        b = self.code.builder
        out_row = b.srem(row, I64(self.out_height))
        return b.sub(b.mul(out_row, I64(self.problem.stride[0])), I64(self.problem.padding[0]))

    def kernel_rows(self, above: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The first row of the kernel that meets the image, and the one after the last."""
        code, b, step = self.code, self.code.builder, self.problem.dilation[0]
        hidden = code.most(I64(0), b.sub(I64(0), above))
        below = b.sdiv(b.sub(I64(self.problem.height - 1), above), I64(step))
        first = b.sdiv(b.add(hidden, I64(step - 1)), I64(step))
        return first, code.least(I64(self.problem.kernel[0]), b.add(below, I64(1)))

    def input(self, x: ir.Value, row: ir.Value, line: ir.Value, place: ir.Value) -> ir.Value:
        """The address of an input row of ``row``'s image at the piece's first pixel and tap."""
        problem, b = self.problem, self.code.builder
        image = b.sdiv(row, I64(self.out_height))
        start = b.mul(self._start(place), I64(problem.stride[1]))
        column = b.sub(start, I64(problem.padding[2]))
        line = b.add(b.mul(image, I64(problem.height)), line)
        pixel = b.add(b.mul(line, I64(problem.width)), column)
        return self.code.at(x, b.mul(pixel, I64(problem.in_channels)), self.element)

    def of_image(self, values: ir.Value, row: ir.Value) -> ir.Value:
        """The address of a row's image among (N, C) values."""
        b = self.code.builder
        image = b.sdiv(row, I64(self.out_height))
        return self.code.at(values, b.mul(image, I64(self.problem.in_channels)), self.element)

    def new_input(self, x: ir.Value, piece: ir.Value, rows: int) -> ir.Value:
        """The address of the lowest so many input rows under a piece; they may not exist."""
        b = self.code.builder
        row, place = self.row_and_place(piece)
        lowest = (self.problem.kernel[0] - 1) * self.problem.dilation[0]
        start = self.input(x, row, b.add(self.above(row), I64(lowest - rows + 1)), place)
        if not self.plan.short_rows:
            return start
        # As far into these rows as the piece begins in its own.
        done = b.srem(self.first_pixel(piece), I64(self.out_width))
        elements = rows * self.problem.width * self.problem.in_channels // self.out_width
        return self.code.at(start, b.mul(done, I64(elements)), self.element)

    def output(self, y: ir.Value, piece: ir.Value, channel: ir.Value) -> ir.Value:
        """The address of a channel of a piece's first pixel."""
        b = self.code.builder
        pixel = b.mul(self.first_pixel(piece), I64(self.problem.out_channels))
        return self.code.at(y, b.add(pixel, channel), self.element)

    def _start(self, place: ir.Value) -> ir.Value:
        """Where a row's piece starts, as ``cut_rows`` cuts: the wider ones come first."""
        b = self.code.builder
        base, wider = divmod(self.out_width, len(self.plan.rows))
        return b.add(b.mul(place, I64(base)), self.code.least(place, I64(wider)))
