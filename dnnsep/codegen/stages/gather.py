"""The first stage of an ordinary convolution: the inputs under the kernel, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.codegen.dots import Dot
from dnnsep.codegen.lang.dtype import Bf16Element, input_element
from dnnsep.codegen.lang.emit import I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.stages.base import Image, Sink, Source, Taps, Window, told_at_run_time
from dnnsep.dtypes import PRECISIONS
from dnnsep.weights import Weights

# Longer runs are copied by a loop.
_WRITTEN_OUT = 4

# Bytes of the vector that padding is filled with.
_FILLED = 64


@dataclass(frozen=True)
class Gather(Source):
    """Copies what the kernel meets, in the order of its rows, its columns, the channels.

    With ``scaled``, which takes a trivial window, each channel of the input is multiplied by a
    number of its image's on the way.
    """

    channels: int
    window: Window
    dtype: str
    scaled: bool = False

    def naive(self, x: Exact, weights: Weights) -> Exact:
        quantization = weights.quantization  # padding holds what stands for 0
        zero = 0 if quantization is None else quantization.source.zero_point
        return np.concatenate([met + zero for _, _, met in self.window.naive(x - zero)], axis=1)

    def bound(self, scale: Exact, error: Exact, weights: Weights) -> tuple[Exact, Exact]:
        sizes, errors = (
            np.concatenate([met for _, _, met in self.window.naive(of)], axis=1)
            for of in (scale, error)
        )
        return sizes, errors

    def depth(self, isa: Isa, dot: Dot) -> int:
        return dot.depth(self.channels * self.window.taps)

    def order(self, isa: Isa, dot: Dot) -> NDArray[np.int64]:
        places = np.arange(self.depth(isa, dot))
        return np.where(places < self.channels * self.window.taps, places, -1)

    def groups(self, isa: Isa) -> int:
        return self.window.kernel[0]

    def pack(self, isa: Isa, dot: Dot, weights: Weights) -> NDArray[Any]:
        """Of bytes a vector of the number that stands for 0, as a tile holds it, which padding is
        filled with."""
        quantization = weights.quantization
        if quantization is None or self.window.trivial:
            return np.empty(0, np.float32)
        zero = quantization.source.unsigned(PRECISIONS[self.dtype].source).zero_point
        return np.full(_FILLED, zero, np.uint8)

    def packed_bytes(self, isa: Isa, dot: Dot) -> int:
        padded = PRECISIONS[self.dtype].quantized and not self.window.trivial
        return _FILLED if padded else 0

    def cycles(self, isa: Isa, dot: Dot) -> float:
        """A load and a store each cycle."""
        copied = -(-self.window.kernel[1] * self.channels // (isa.lanes * 4 // dot.bytes))
        return float(copied * self.window.kernel[0])

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
        """As Source.emit, but in the weights' place is the scale of the image's channels. A group
        is a row of the kernel."""
        arguments = [POINTER, POINTER, POINTER, I64, I64, *[I64] * by_groups]
        arguments += [I64] * told_at_run_time(image, taps)
        code = Code(module, name, arguments).internal()
        return _Emitter(code, self, isa, dot, image, taps, sink).emit()


class _Emitter:
    def __init__(
        self,
        code: Code,
        stage: Gather,
        isa: Isa,
        dot: Dot,
        image: Image,
        taps: Taps,
        sink: Sink,
    ) -> None:
        self.code, self.stage, self.isa, self.dot = code, stage, isa, dot
        self.taps, self.sink, self.window = taps, sink, stage.window
        self.image, self.channels = image, stage.channels
        self.row = self.window.kernel[1] * self.channels  # elements of a kernel's row
        self.gathered = self.row * self.window.kernel[0]
        self.filled = stage.depth(isa, dot) - self.gathered  # with zeros at the end
        self.element = input_element(stage.dtype)
        self.lanes = isa.lanes * 4 // dot.bytes

    def emit(self) -> ir.Function:
        code, b = self.code, self.code.builder
        x, _, tile, first, last, *group = code.arguments
        count = told_at_run_time(self.image, self.taps)
        group, told = group[: len(group) - count], group[len(group) - count :]
        width = told.pop(0) if self.image.width is None else I64(self.image.width)
        self.columns = told

        def row(i: ir.Value) -> None:
            pitch = b.mul(width, I64(self.window.dilation[0] * self.image.pitch))
            line = code.at(x, b.mul(i, pitch), self.element.type)
            place = code.at(tile, b.mul(i, I64(self.row)), self.sink.element)
            meets = b.and_(b.icmp_signed(">=", i, first), b.icmp_signed("<", i, last))
            with b.if_else(meets) as (yes, no):
                with yes:
                    for pixel in range(self.taps.width):
                        self._pixel(line, self._at(place, pixel * self.sink.stride), pixel)
                with no:
                    for pixel in range(self.taps.width):
                        self._pad(self._at(place, pixel * self.sink.stride), 0, self.row)

        def fill() -> None:
            for pixel in range(self.taps.width):
                end = pixel * self.sink.stride + self.gathered
                self._zeros(tile, end, end + self.filled)

        if not group:
            code.for_each(0, self.window.kernel[0], row)
            if self.filled:
                fill()
            return code.end()
        (number,) = group
        row(number)
        if self.filled:
            code.when(b.icmp_signed("==", number, I64(0)), fill)
        return code.end()

    def _pixel(self, line: ir.Value, place: ir.Value, pixel: int) -> None:
        """Copies one row of the kernel at one pixel; zeros where its columns are outside the
        image."""
        if self.taps.columns is None:
            self._told_pixel(line, place)
            return
        taps, step = self.taps.known[pixel], self.window.dilation[1]
        start = pixel * self.window.stride[1]
        together = step == 1 and self.image.pitch == self.channels
        runs = [taps] if together else [range(tap, tap + 1) for tap in taps]
        self._pad(place, 0, taps.start * self.channels)
        for run in runs:
            column = start + run.start * step
            source = self.code.at(line, column * self.image.pitch, self.element.type)
            self._copy(source, self._at(place, run.start * self.channels), len(run) * self.channels)
        self._pad(place, taps.stop * self.channels, self.row)

    def _told_pixel(self, line: ir.Value, place: ir.Value) -> None:
        """Copies one row of the kernel at a pixel whose columns are told at run time."""
        code, b, (first, last) = self.code, self.code.builder, self.columns

        def one(tap: ir.Value) -> None:
            target = code.at(place, b.mul(tap, I64(self.channels)), self.sink.element)
            step = self.window.dilation[1] * self.image.pitch
            source = code.at(line, b.mul(tap, I64(step)), self.element.type)
            meets = b.and_(b.icmp_signed(">=", tap, first), b.icmp_signed("<", tap, last))
            with b.if_else(meets) as (yes, no):
                with yes:
                    self._copy(source, target, self.channels)
                with no:
                    self._pad(target, 0, self.channels)

        code.for_each(0, self.window.kernel[1], one)

    def _copy(self, source: ir.Value, target: ir.Value, count: int) -> None:
        code = self.code
        whole, rest = divmod(count, self.lanes)

        def one(at: ir.Value | int, lanes: int | None = None) -> None:
            elements = (
                code.builder.mul(at, I64(self.lanes))
                if isinstance(at, ir.Value)
                else I64(at * self.lanes)
            )
            value = self._load(code.at(source, elements, self.element.type), lanes)
            if self.stage.scaled:  # a run is all channels of a pixel
                scales = code.at(code.arguments[1], elements, self.element.type)
                value = self._product(value, self._load(scales, lanes))
            value = self.dot.of_input(code, self.element, value)
            code.store(value, code.at(target, elements, self.sink.element), lanes)

        if whole > _WRITTEN_OUT:
            code.for_each(0, whole, one)
        else:
            for at in range(whole):
                one(at)
        if rest:
            one(whole, rest)

    def _load(self, place: ir.Value, lanes: int | None) -> ir.Value:
        return self.code.load(place, ir.VectorType(self.element.type, self.lanes), lanes)

    def _product(self, value: ir.Value, scale: ir.Value) -> ir.Value:
        """Multiplies vectors of the input's dtype, and rounds to it."""
        code, element, isa = self.code, self.element, self.isa
        if isinstance(element, Bf16Element) and self.lanes > isa.lanes:
            pairs = (element.widened_block(code, isa, of) for of in (value, scale))
            products = [code.builder.fmul(*pair) for pair in zip(*pairs, strict=True)]
            return element.rounded_block(code, isa, products)
        product = code.builder.fmul(element.widened(code, value), element.widened(code, scale))
        return element.rounded(code, isa, product)

    def _pad(self, place: ir.Value, start: int, stop: int) -> None:
        """Fills a range of a row with what stands for 0 in the input."""
        if not PRECISIONS[self.stage.dtype].quantized or self.window.trivial:
            self._zeros(place, start, stop)
        elif start < stop:
            kind = ir.VectorType(self.sink.element, self.lanes)
            self._fill(place, start, stop, self.code.load(self.code.arguments[1], kind))

    def _zeros(self, place: ir.Value, start: int, stop: int) -> None:
        kind = ir.VectorType(self.sink.element, self.lanes)
        self._fill(place, start, stop, ir.Constant(kind, None))

    def _fill(self, place: ir.Value, start: int, stop: int, value: ir.Value) -> None:
        for at in range(start, stop, self.lanes):
            lanes = min(self.lanes, stop - at)
            self.code.store(value, self._at(place, at), lanes)

    def _at(self, place: ir.Value, elements: int) -> ir.Value:
        return self.code.at(place, elements, self.sink.element)
