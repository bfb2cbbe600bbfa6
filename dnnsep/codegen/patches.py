"""The first stage of an ordinary convolution: the inputs under the kernel, side by side."""

from __future__ import annotations

from llvmlite import ir

from dnnsep.codegen.depthwise import Shape
from dnnsep.codegen.lang.bf16 import from_bf16, to_bf16
from dnnsep.codegen.lang.emit import F32, I16, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.plan import depth, row_stride, tile_is_bf16
from dnnsep.problem import Problem

# Longer runs are copied by a loop.
_WRITTEN_OUT = 4


def emit_patches(
    module: ir.Module, name: str, problem: Problem, isa: Isa, shape: Shape, scaled: bool
) -> ir.Function:
    """f(x, scale, tile, first, last), otherwise as ``emit_depthwise``'s; ``scaled`` inputs are
    multiplied by ``scale``, (C,)."""
    code = Code(module, name, [POINTER, POINTER, POINTER, I64, I64]).internal()
    return _Patches(code, problem, isa, shape, scaled).emit()


class _Patches:
    def __init__(self, code: Code, problem: Problem, isa: Isa, shape: Shape, scaled: bool) -> None:
        self.code, self.problem, self.shape, self.scaled = code, problem, shape, scaled
        self.channels = problem.in_channels
        self.row = problem.kernel[1] * problem.in_channels  # elements of a kernel's row
        self.stride = row_stride(problem, isa)
        self.filled = depth(problem, isa) - problem.kernel[0] * self.row  # with zeros at the end
        self.element = I16 if problem.dtype == "bf16" else F32
        self.tile_element = I16 if tile_is_bf16(problem, isa) else F32
        self.lanes = isa.lanes * (2 if tile_is_bf16(problem, isa) else 1)

    def emit(self) -> ir.Function:
        code, b = self.code, self.code.builder
        x, _, tile, first, last = code.arguments

        def row(i: ir.Value) -> None:
            pitch = self.problem.dilation[0] * self.problem.width * self.channels
            line = code.at(x, b.mul(i, I64(pitch)), self.element)
            place = code.at(tile, b.mul(i, I64(self.row)), self.tile_element)
            meets = b.and_(b.icmp_signed(">=", i, first), b.icmp_signed("<", i, last))
            with b.if_else(meets) as (yes, no):
                with yes:
                    for pixel in range(self.shape.width):
                        self._pixel(line, self._at(place, pixel * self.stride), pixel)
                with no:
                    for pixel in range(self.shape.width):
                        self._zeros(self._at(place, pixel * self.stride), 0, self.row)

        code.for_each(0, self.problem.kernel[0], row)
        if self.filled:
            for pixel in range(self.shape.width):
                end = (pixel + 1) * self.stride - (self.stride - self.problem.mid_channels)
                self._zeros(tile, end, end + self.filled)
        return code.end()

    def _pixel(self, line: ir.Value, place: ir.Value, pixel: int) -> None:
        """One row of the kernel at one pixel; zeros where its columns are outside the image."""
        taps, step = self.shape.taps[pixel], self.problem.dilation[1]
        start = pixel * self.problem.stride[1]
        runs = [taps] if step == 1 else [range(tap, tap + 1) for tap in taps]
        self._zeros(place, 0, taps.start * self.channels)
        for run in runs:
            source = self.code.at(line, (start + run.start * step) * self.channels, self.element)
            self._copy(source, self._at(place, run.start * self.channels), len(run) * self.channels)
        self._zeros(place, taps.stop * self.channels, self.row)

    def _copy(self, source: ir.Value, target: ir.Value, count: int) -> None:
        code = self.code
        whole, rest = divmod(count, self.lanes)

        def one(at: ir.Value | int, lanes: int | None = None) -> None:
            elements = (
                code.builder.mul(at, I64(self.lanes))
                if isinstance(at, ir.Value)
                else I64(at * self.lanes)
            )
            value = self._load(code.at(source, elements, self.element), lanes)
            if self.scaled:  # a run is all channels of a pixel
                scale = self._load(code.at(code.arguments[1], elements, self.element), lanes)
                value = self._times(value, scale)
            if self.element is not self.tile_element:
                value = from_bf16(code, value)
            code.store(value, code.at(target, elements, self.tile_element), lanes)

        if whole > _WRITTEN_OUT:
            code.for_each(0, whole, one)
        else:
            for at in range(whole):
                one(at)
        if rest:
            one(whole, rest)

    def _load(self, place: ir.Value, lanes: int | None) -> ir.Value:
        return self.code.load(place, ir.VectorType(self.element, self.lanes), lanes)

    def _times(self, value: ir.Value, scale: ir.Value) -> ir.Value:
        """Of the input's dtype."""
        code = self.code
        if self.problem.dtype == "f32":
            return code.builder.fmul(value, scale)
        product = code.builder.fmul(from_bf16(code, value), from_bf16(code, scale))
        return to_bf16(code, product, by_instruction=False)

    def _zeros(self, place: ir.Value, start: int, stop: int) -> None:
        kind = ir.VectorType(self.tile_element, self.lanes)
        for at in range(start, stop, self.lanes):
            lanes = min(self.lanes, stop - at)
            self.code.store(ir.Constant(kind, None), self._at(place, at), lanes)

    def _at(self, place: ir.Value, elements: int) -> ir.Value:
        return self.code.at(place, elements, self.tile_element)
