"""A part of an ordinary convolution whose products leave out taps that are outside the image."""

from __future__ import annotations

from itertools import groupby

from llvmlite import ir

from dnnsep.codegen.dots import VectorDot
from dnnsep.codegen.lang.emit import I64
from dnnsep.codegen.part import Part, choose
from dnnsep.codegen.plan import met_columns
from dnnsep.codegen.stages.gather import Gather
from dnnsep.codegen.stages.matmul import Met


class ConvolutionPart(Part):
    """A part whose products take the rows of the kernel that meet the image in any pixel of their
    piece, and of each pixel only the columns that do, where pieces are alike from row to row."""

    def _call_product(self, piece: ir.Value, columns: int, arguments: list[ir.Value]) -> None:
        code, b, (source, dot) = self.code, self.code.builder, self._taken
        begin, end = self.places.met_rows(piece)
        rows, weights, *others = arguments
        channels = b.mul(begin, I64(source.channels * source.window.kernel[1]))
        rows = code.at(rows, channels, dot.element)
        lanes = self.layer.isa.lanes
        width = -(-columns // lanes) * lanes
        weights = code.at(weights, b.mul(channels, I64(width)), dot.element)
        value, met = self._met(piece)
        choices = [(stop, self._product(len(m.columns), columns, m)) for stop, m in met]
        choose(code, value, choices, [rows, weights, *others, b.sub(end, begin)])

    def _met(self, piece: ir.Value) -> tuple[ir.Value, list[tuple[int, Met]]]:
        """Returns a value and the (end, taps) of pieces for which it is below the end, in order."""
        source, dot = self._taken
        taps, steps = source.window.kernel[1], source.channels // dot.k
        value, sizes = self.places.sizes(piece)
        runs = met_columns(source.window, self.plan, self.extent.width, self.places.out_pixels)
        if runs is None:
            return value, [(end, Met(taps, steps, (range(taps),) * n)) for end, n in sizes]
        ends, end = [], 0
        for columns, group in groupby(runs):
            end += len(list(group))
            ends.append((end, Met(taps, steps, columns)))
        if self.plan.short_rows:
            value = I64(0)
        return value, ends

    @property
    def _taken(self) -> tuple[Gather, VectorDot]:
        source, dot = self.layer.source, self.layer.dot
        assert isinstance(source, Gather)
        assert isinstance(dot, VectorDot)
        return source, dot
