"""The product of pixels by a matrix: the pointwise stage, and the second of an ordinary
convolution; alone it is a pointwise convolution or a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.activations import ACTIVATIONS, Exact
from dnnsep.codegen.dots import Dot, VectorDot
from dnnsep.codegen.dots.base import STEPS_AT_ONCE
from dnnsep.codegen.lang.activate import LONG
from dnnsep.codegen.lang.dtype import ByteElement, output_element
from dnnsep.codegen.lang.emit import F32, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.prefetch import Ahead, Prefetch
from dnnsep.codegen.stages.base import Stage, bound_of_sum
from dnnsep.codegen.stages.finish import ByteFinish, Finish, finish_of, laid_out
from dnnsep.codegen.stages.residual import Residual
from dnnsep.dtypes import PRECISIONS
from dnnsep.quantization import Requantization
from dnnsep.weights import Weights


@dataclass(frozen=True)
class Matmul(Stage):
    """Each output channel is a weighted sum of all ``channels`` of the same pixel, and a bias."""

    channels: int
    out_channels: int
    activation: str
    dtype: str

    def naive(self, x: Exact, weights: Weights) -> Exact:
        y = self.sums(x, weights)
        if weights.quantization is not None:
            return self.requantization(weights).naive(y, self.activation)
        if weights.pointwise_bias is not None:
            y = y + weights.pointwise_bias.astype(np.float64)[:, None, None]
        return ACTIVATIONS[self.activation].naive(y)

    def sums(self, x: Exact, weights: Weights) -> Exact:
        """Returns the sums of products alone, of a quantised problem whole numbers."""
        batch, channels, height, width = x.shape
        pixels = x.reshape(batch, channels, height * width)
        if weights.quantization is not None:
            pixels = pixels - weights.quantization.input_of("pointwise").zero_point
        return (self.matrix(weights).astype(np.float64) @ pixels).reshape(batch, -1, height, width)

    def bound(self, scale: Exact, error: Exact, weights: Weights) -> tuple[Exact, Exact]:
        if weights.quantization is not None:
            zero = abs(weights.quantization.input_of("pointwise").zero_point)
            sizes, errors = (
                np.einsum("oc,nchw->nohw", self.matrix(weights).astype(np.float64), of)
                for of in (scale + zero, error)
            )
            return sizes, self.requantization(weights).bound(sizes, errors, self.activation)
        sums = Matmul(self.channels, self.out_channels, "none", self.dtype)
        carried = sums.naive(error, Weights(pointwise=weights.pointwise))
        terms = self.channels
        return bound_of_sum(sums.naive(scale, weights), carried, terms, self.activation, self.dtype)

    def requantization(self, weights: Weights) -> Requantization:
        """Returns how the sums of a quantised problem become its output."""
        assert weights.quantization is not None
        bias = weights.pointwise_bias
        return weights.quantization.of_stage("pointwise", self.dtype, bias, self.activation)

    def matrix(self, weights: Weights) -> NDArray[np.float32]:
        """Returns the weights as (output channels, channels), an ordinary convolution's in the
        order that Gather puts its taps in."""
        assert weights.pointwise is not None
        return weights.pointwise.transpose(0, 2, 3, 1).reshape(self.out_channels, -1)

    def panels(self, isa: Isa, vectors: int) -> int:
        """Returns how many panels of so many vectors the output channels are, the last one maybe
        with fewer."""
        return -(-self.out_channels // (isa.lanes * vectors))

    def pack(
        self, isa: Isa, dot: Dot, vectors: int, order: NDArray[np.int64], weights: Weights
    ) -> NDArray[Any]:
        """Returns the panels one after the other, flat, of a matrix whose rows are in the tile's
        ``order``; the last panel is only as wide as whole vectors hold its channels."""
        width = vectors * isa.lanes
        there = order >= 0
        matrix = np.zeros((len(order), self.panels(isa, vectors) * width), np.float32)
        matrix[there, : self.out_channels] = self.matrix(weights).T[order[there]]
        packed: list[NDArray[Any]] = []
        for first in range(0, self.out_channels, width):
            channels = min(width, self.out_channels - first)
            columns = -(-channels // isa.lanes) * isa.lanes
            packed.append(dot.pack(np.ascontiguousarray(matrix[:, first : first + columns]), isa))
        return np.concatenate(packed)

    @property
    def finish(self) -> Finish:
        """What becomes of the sums."""
        return finish_of(self.activation, self.dtype)

    def pack_table(self, isa: Isa, vectors: int, weights: Weights) -> NDArray[np.float32]:
        """Returns the table of ``finish``, zeros beyond the output channels, for as many as all
        panels have."""
        finish, quantization = self.finish, weights.quantization
        channels = self.panels(isa, vectors) * vectors * isa.lanes
        table = np.zeros((finish.rows, channels), np.float32)
        if quantization is not None:
            assert isinstance(finish, ByteFinish)
            zero = quantization.input_of("pointwise").unsigned(PRECISIONS[self.dtype].source)
            how, matrix = self.requantization(weights), self.matrix(weights)
            table[:, : self.out_channels] = finish.table(how, zero.zero_point, matrix)
        elif weights.pointwise_bias is not None:
            table[0, : self.out_channels] = weights.pointwise_bias
        return laid_out(table, isa)


@dataclass(frozen=True)
class Met:
    """Which taps of an ordinary convolution's kernel a product takes: those that meet the image.

    A pixel's row is rows of the kernel, of ``taps`` columns with so many ``steps`` each. Of each
    pixel of the product ``columns`` are those that meet the image; the rows are told at run time.
    """

    taps: int
    steps: int
    columns: tuple[range, ...]

    def segments(self) -> list[tuple[range, range]]:
        """Returns runs of the kernel's columns, each with the pixels that it meets the image in:
        one at least, and all neighbours but for those of a column that some rows of pixels are
        between, which are taken to meet it too."""
        found: list[tuple[range, range]] = []
        for column in range(self.taps):
            met = [pixel for pixel, columns in enumerate(self.columns) if column in columns]
            if not met:
                continue
            pixels = range(met[0], met[-1] + 1)
            if found and found[-1][0].stop == column and found[-1][1] == pixels:
                found[-1] = (range(found[-1][0].start, column + 1), pixels)
            else:
                found.append((range(column, column + 1), pixels))
        return found


@dataclass(frozen=True)
class Product:
    """A product of ``pixels`` rows by ``columns`` of a panel, all kept in registers.

    The rows are ``stride`` elements apart and have ``depth`` channels; the output's are ``y_pitch``
    apart. What it fetches meanwhile: ``prefetch`` of the input, ``ahead`` of the weights. The
    ``residual`` is added to the sums. What of the depth is ``met`` alone is multiplied.
    """

    stage: Matmul
    isa: Isa
    dot: VectorDot
    stride: int
    depth: int
    pixels: int
    columns: int
    y_pitch: int
    prefetch: Prefetch | None
    ahead: Ahead | None
    residual: Residual | None
    streaming: bool
    met: Met | None = None

    def emit(self, module: ir.Module, name: str) -> ir.Function:
        """Returns f(rows, weights, table, y, residual, next, ahead), which prefetches from ``next``
        and ``ahead``; one for taps that meet the image has one more argument, how many rows of the
        kernel do.

        Weights are as ``Matmul.pack`` has them, the table as ``pack_table`` has it. Sums run over
        the channels in order.
        """
        arguments = [*[POINTER] * 7, *[I64] * (self.met is not None)]
        return _Emitter(Code(module, name, arguments).internal(), self).emit()


class _Emitter:
    def __init__(self, code: Code, of: Product) -> None:
        self.code, self.of, self.isa, self.dot = code, of, of.isa, of.dot
        self.vectors = -(-of.columns // self.isa.lanes)
        self.vector = ir.VectorType(F32, self.isa.lanes)
        self.element, self.finish = output_element(of.stage.dtype), of.stage.finish
        self.steps = of.depth // self.dot.k

    def emit(self) -> ir.Function:
        code = self.code
        starts = [self._of_table(v, 0, self.dot.total) for v in self._columns()]
        sums = self._sums([starts[v] for _ in self._pixels() for v in self._columns()])
        rows = [sums[i : i + self.vectors] for i in range(0, len(sums), self.vectors)]
        if self.of.stage.activation in LONG:
            code.for_rows(rows, partial(self._store_row, self._of_table))
            return code.end()
        # Read once: that stores do not overwrite the table is more than LLVM knows.
        read = {
            (v, row): self._of_table(v, row)
            for v in self._columns()
            for row in range(1, self.finish.rows)
        }
        for pixel, values in enumerate(rows):
            self._store_row(lambda v, row: read[v, row], I64(pixel), values)
        return code.end()

    def _store_row(
        self, table: Callable[[int, int], ir.Value], pixel: ir.Value, sums: list[ir.Value]
    ) -> None:
        """Finishes the sums of a pixel and writes them; ``table(v, n)`` is the n-th row of the
        table for the v-th vector."""
        _, _, _, y, residual, *_ = self.code.arguments
        row, finish = self._row(y, pixel, self.of.y_pitch), self.finish
        added = residual
        if self.of.residual:
            added = self._row(residual, pixel, self.of.residual.pitch)
        if isinstance(finish, ByteFinish) and finish.to_bytes:
            assert isinstance(self.element, ByteElement)
            load = partial(self._load, added) if self.of.residual else None
            value = self.element.moved(self.code, finish.bytes(self.code, sums, table, load))
            self.code.store(value, row, self.of.columns, self._streams)
            return
        for v, total in enumerate(sums):
            self._store(partial(table, v), total, row, added, v)

    @property
    def _streams(self) -> bool:
        """Whether bytes are streamed: where a pixel begins at a multiple of a store's size."""
        whole = self.vectors * self.isa.lanes
        return self.of.streaming and self.of.stage.out_channels % whole == 0 and self.vectors != 3

    def _of_table(self, v: int, row: int, kind: ir.Type = F32) -> ir.Value:
        """Loads a row of the table for the v-th vector of sums."""
        place = self.code.at(self.code.arguments[2], v * self.finish.rows + row, self.vector)
        return self.code.load(place, ir.VectorType(kind, self.isa.lanes))

    def _columns(self) -> range:
        return range(self.vectors)

    def _pixels(self) -> range:
        return range(self.of.pixels)

    def _sums(self, sums: list[ir.Value]) -> list[ir.Value]:
        """Emits all products; returns the sums, which begin with the given ones."""
        met = self.of.met
        if met is None:
            whole = self.steps // STEPS_AT_ONCE * STEPS_AT_ONCE
            sums = self._rounds(I64(0), I64(whole), self._pixels(), sums)
            if whole == self.steps:
                return sums
            return self._multiply(I64(whole), self.steps - whole, self._pixels(), list(sums))
        code, b, segments = self.code, self.code.builder, met.segments()

        def row(i: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            start = b.mul(i, I64(met.taps * met.steps))
            for columns, pixels in segments:
                first, last = (
                    b.add(start, I64(column * met.steps))
                    for column in (columns.start, columns.stop)
                )
                some = slice(pixels.start * self.vectors, pixels.stop * self.vectors)
                sums[some] = self._rounds(first, last, pixels, sums[some])
            return sums

        return code.for_range(I64(0), code.arguments[-1], row, sums)

    def _rounds(
        self, first: ir.Value, last: ir.Value, pixels: range, sums: list[ir.Value]
    ) -> list[ir.Value]:
        """Emits the steps [``first``, ``last``), whole rounds, of some pixels; returns the sums."""
        return self.code.for_range(
            first, last, lambda at, sums: self._round(at, pixels, sums), sums, step=STEPS_AT_ONCE
        )

    def _round(self, at: ir.Value, pixels: range, sums: list[ir.Value]) -> list[ir.Value]:
        """One round of the loop: fetches what falls to it, and multiplies some steps."""
        following, panel_ahead = self.code.arguments[5:7]
        if self.of.prefetch:
            self.of.prefetch.emit(self.code, following, at, self.steps, STEPS_AT_ONCE)
        if self.of.ahead:
            self.of.ahead.emit(self.code, panel_ahead, at, STEPS_AT_ONCE)
        return self._multiply(at, STEPS_AT_ONCE, pixels, sums)

    def _multiply(
        self, at: ir.Value, count: int, pixels: range, sums: list[ir.Value]
    ) -> list[ir.Value]:
        """Adds the products of so many steps from the step ``at`` on to some pixels' sums."""
        code, b, word = self.code, self.code.builder, self.dot.word
        tile, weights, *_ = code.arguments
        words = ir.VectorType(word, self.isa.lanes)
        pair = word if self.dot.k == 1 else ir.VectorType(self.dot.element, self.dot.k)
        each = self.dot.factors
        panel = code.at(weights, b.mul(at, I64(self.vectors * each)), words)
        column = code.at(tile, at, word)
        for step in range(count):
            factors = [
                code.load(code.at(panel, (step * self.vectors + v) * each + n, words), words)
                for v in self._columns()
                for n in range(each)
            ]
            for index, pixel in enumerate(pixels):
                elements = pixel * self.of.stride + step * self.dot.k
                value = code.load(code.at(column, elements, self.dot.element), pair)
                whole = code.broadcast(b.bitcast(value, word), self.isa.lanes)
                parts = self.dot.split(code, whole)
                for v in self._columns():
                    place = index * self.vectors + v
                    for n, part in enumerate(parts):
                        factor = factors[v * each + n]
                        sums[place] = self.dot.step(code, sums[place], part, factor)
        return sums

    def _there(self, v: int) -> int:
        """Returns how many of a vector's lanes have channels."""
        return min(self.isa.lanes, self.of.columns - v * self.isa.lanes)

    def _row(self, start: ir.Value, pixel: ir.Value, pitch: int) -> ir.Value:
        """Returns the address of a pixel's channels in the output or the residual."""
        return self.code.at(start, self.code.builder.mul(pixel, I64(pitch)), self.element.type)

    def _load(self, row: ir.Value, v: int) -> ir.Value:
        """Loads a vector of a row of the residual, in f32."""
        place = self.code.at(row, v * self.isa.lanes, self.element.type)
        return self.element.load(self.code, place, self.isa.lanes, self._there(v))

    def _store(
        self,
        table: Callable[[int], ir.Value],
        total: ir.Value,
        row: ir.Value,
        added: ir.Value,
        v: int,
    ) -> None:
        """Finishes a vector of sums, with a row of the residual, and writes it into a row."""
        residual = self.of.residual
        value = self.finish.value(
            self.code,
            total,
            table,
            residual,
            lambda: self._load(added, v),
        )
        place = self.code.at(row, v * self.isa.lanes, self.element.type)
        lanes, streaming = self._there(v), self.of.streaming
        self.element.store(self.code, self.isa, value, place, lanes, streaming)
