"""Where a plan's pieces are in memory: emits the arithmetic from a piece's number to addresses."""

from __future__ import annotations

from itertools import groupby

from llvmlite import ir

from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import Pitches
from dnnsep.codegen.lang.dtype import input_element, output_element
from dnnsep.codegen.lang.emit import I64, Code
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.plan import Plan


class Places:
    """Emits addresses of a plan's pieces.

    Pieces are numbered along a row of output pixels, then row by row over all images. A piece's
    ``place`` is its number along its row; a piece of short rows has place 0.
    """

    def __init__(
        self, code: Code, layer: Layer, extent: Extent, plan: Plan, pitches: Pitches
    ) -> None:
        self.code, self.extent, self.plan, self.pitches = code, extent, plan, pitches
        self.window, self.channels = layer.window, layer.channels
        self.element = input_element(layer.dtype).type
        self.out_element = output_element(layer.dtype).type
        self.out_height, self.out_width = extent.out_size(layer.window)
        self.out_pixels = extent.batch * self.out_height * self.out_width

    def row_and_place(self, piece: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns the row of a piece's first pixel and the piece's place along it."""
        b, count = self.code.builder, len(self.plan.rows)
        if self.plan.short_rows:
            return b.sdiv(self.first_pixel(piece), I64(self.out_width)), I64(0)
        return b.sdiv(piece, I64(count)), b.srem(piece, I64(count))

    def first_pixel(self, piece: ir.Value) -> ir.Value:
        """Returns the number of a piece's first pixel among all output pixels."""
        b = self.code.builder
        if self.plan.short_rows:
            pixels = b.mul(piece, I64(self.out_pixels))
            return b.sdiv(pixels, I64(self.plan.pieces))
        row, place = self.row_and_place(piece)
        return b.add(b.mul(row, I64(self.out_width)), self._start(place))

    def rows_of(self, first: ir.Value, last: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns the first row of the pieces [first, last) and the one after their last."""
        b, width = self.code.builder, I64(self.out_width)
        last_pixel = b.sub(self.first_pixel(last), I64(1))
        return b.sdiv(self.first_pixel(first), width), b.add(b.sdiv(last_pixel, width), I64(1))

    def sizes(self, piece: ir.Value) -> tuple[ir.Value, list[tuple[int, int]]]:
        """Returns a value and the (end, pixels) of pieces for which it is below the end, in
        order."""
        plan, b = self.plan, self.code.builder
        if plan.short_rows:
            pixels = b.sub(self.first_pixel(b.add(piece, I64(1))), self.first_pixel(piece))
            least = self.out_pixels // plan.pieces
            return pixels, [(n + 1, n) for n in range(least, plan.pixels + 1)]
        ends, end = [], 0
        for width, group in groupby(row.width for row in plan.rows):
            end += len(list(group))
            ends.append((end, width))
        return b.srem(piece, I64(len(plan.rows))), ends

    def above(self, row: ir.Value) -> ir.Value:
        """Returns the input row under the kernel's first row, in its image; maybe above it."""
        b = self.code.builder
        out_row = b.srem(row, I64(self.out_height))
        return b.sub(b.mul(out_row, I64(self.window.stride[0])), I64(self.window.padding[0]))

    def kernel_rows(self, above: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns the first row of the kernel that meets the image, and the one after the last."""
        code, b, step = self.code, self.code.builder, self.window.dilation[0]
        hidden = code.most(I64(0), b.sub(I64(0), above))
        left = b.sub(I64(self.extent.height - 1), above)
        if self.window.padding[1] <= (self.window.kernel[0] - 1) * step:
            last = b.add(b.sdiv(left, I64(step)), I64(1))
        else:  # all of the kernel may be below the image
            last = b.sdiv(b.add(code.most(left, I64(-step)), I64(step)), I64(step))
        first = b.sdiv(b.add(hidden, I64(step - 1)), I64(step))
        return first, code.least(I64(self.window.kernel[0]), last)

    def met_rows(self, piece: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns the first row of the kernel that meets the image in any pixel of a piece, and the
        one after the last; they are none where the first is not before it."""
        b, row = self.code.builder, self.row_and_place(piece)[0]
        first, last = self.kernel_rows(self.above(row))
        if not self.plan.short_rows:
            return first, last
        # The further down a row is, the lower are the first and the last that it meets.
        pixel = b.sub(self.first_pixel(b.add(piece, I64(1))), I64(1))
        lowest = b.sdiv(pixel, I64(self.out_width))
        first, _ = self.kernel_rows(self.above(lowest))
        height = I64(self.out_height)
        one_image = b.icmp_signed("==", b.sdiv(row, height), b.sdiv(lowest, height))
        whole = I64(self.window.kernel[0])
        return b.select(one_image, first, I64(0)), b.select(one_image, last, whole)

    def input(self, x: ir.Value, row: ir.Value, line: ir.Value, place: ir.Value) -> ir.Value:
        """Returns the address of an input row of ``row``'s image, at a piece's first pixel and
        tap."""
        window, b = self.window, self.code.builder
        image = b.sdiv(row, I64(self.out_height))
        start = b.mul(self._start(place), I64(window.stride[1]))
        column = b.sub(start, I64(window.padding[2]))
        line = b.add(b.mul(image, I64(self.extent.height)), line)
        pixel = b.add(b.mul(line, I64(self.extent.width)), column)
        return self.code.at(x, b.mul(pixel, I64(self.pitches.x)), self.element)

    def of_image(self, values: ir.Value, row: ir.Value) -> ir.Value:
        """Returns the address of a row's image among (N, C) values."""
        b = self.code.builder
        image = b.sdiv(row, I64(self.out_height))
        return self.code.at(values, b.mul(image, I64(self.channels)), self.element)

    def new_input(self, x: ir.Value, piece: ir.Value, rows: int) -> ir.Value:
        """Returns the address of the lowest so many input rows under a piece; there may be none."""
        b = self.code.builder
        row, place = self.row_and_place(piece)
        lowest = (self.window.kernel[0] - 1) * self.window.dilation[0]
        start = self.input(x, row, b.add(self.above(row), I64(lowest - rows + 1)), place)
        if not self.plan.short_rows:
            return start
        # As far into these rows as the piece begins in its own.
        done = b.srem(self.first_pixel(piece), I64(self.out_width))
        elements = rows * self.extent.width * self.pitches.x // self.out_width
        return self.code.at(start, b.mul(done, I64(elements)), self.element)

    def output(self, y: ir.Value, piece: ir.Value, channel: ir.Value) -> ir.Value:
        """Returns the address of a channel of a piece's first pixel."""
        return self._channel(y, piece, channel, self.pitches.y)

    def added(self, residual: ir.Value, piece: ir.Value, channel: ir.Value) -> ir.Value:
        """Returns the address of what is added to a channel of a piece's first pixel."""
        return self._channel(residual, piece, channel, self.pitches.residual)

    def _channel(self, start: ir.Value, piece: ir.Value, channel: ir.Value, pitch: int) -> ir.Value:
        b = self.code.builder
        pixel = b.mul(self.first_pixel(piece), I64(pitch))
        return self.code.at(start, b.add(pixel, channel), self.out_element)

    def pixel(self, x: ir.Value, piece: ir.Value) -> ir.Value:
        """Returns the address of the input pixel under a piece's first pixel, where each output
        pixel has just its own."""
        elements = self.code.builder.mul(self.first_pixel(piece), I64(self.pitches.x))
        return self.code.at(x, elements, self.element)

    def _start(self, place: ir.Value) -> ir.Value:
        """Returns where a row's piece starts, as ``plan.cut`` cuts: of the first pieces each is as
        wide as the first one, and the others but the last are by one pixel less wide."""
        b, rows = self.code.builder, self.plan.rows
        wider = sum(row.width == rows[0].width for row in rows[:-1])
        if wider == len(rows) - 1:
            return b.mul(place, I64(rows[0].width))
        base = rows[0].width - 1
        return b.add(b.mul(place, I64(base)), self.code.least(place, I64(wider)))
