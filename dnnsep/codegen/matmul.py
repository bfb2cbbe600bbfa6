"""The pointwise stage of a piece: some pixels of a tile times a panel of the packed weights."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.lang.activate import LONG, activate
from dnnsep.codegen.lang.bf16 import from_bf16, to_bf16
from dnnsep.codegen.lang.emit import F32, I16, I32, I64, POINTER, Code
from dnnsep.codegen.plan import STEPS_AT_ONCE, Plan, depth, row_stride, tile_is_bf16
from dnnsep.codegen.prefetch import Ahead, Prefetch
from dnnsep.problem import Problem


@dataclass(frozen=True)
class Matmul:
    """A product of ``pixels`` rows of a tile by ``channels`` columns of a panel, all kept in
    registers; what it prefetches meanwhile, of the input and of the ``ahead`` lying weights."""

    problem: Problem
    plan: Plan
    pixels: int
    channels: int
    prefetch: Prefetch | None
    ahead: Ahead | None
    with_residual: bool

    def emit(self, module: ir.Module) -> ir.Function:
        """f(tile, weights, bias, y, next, ahead, residual); ``next`` and ``ahead`` are where to
        prefetch.

        Weights are as ``pack.pointwise`` has them. Sums run over the tile's channels in order.
        """
        name = f"matmul_{self.pixels}x{self.channels}"
        return _Emitter(Code(module, name, [POINTER] * 7).internal(), self).emit()


class _Emitter:
    def __init__(self, code: Code, of: Matmul) -> None:
        self.code, self.of, self.problem, self.isa = code, of, of.problem, of.plan.isa
        self.vectors = -(-of.channels // self.isa.lanes)
        self.vector = ir.VectorType(F32, self.isa.lanes)
        self.dot = tile_is_bf16(of.problem, self.isa)
        # A step takes one channel, or a pair of bf16 as one 32-bit word.
        self.steps = depth(of.problem, self.isa) // (2 if self.dot else 1)

    def emit(self) -> ir.Function:
        code = self.code
        _, _, bias, y, _, _, residual = code.arguments
        biases = [code.load(code.at(bias, v, self.vector), self.vector) for v in self._columns()]
        sums = code.for_range(
            I64(0),
            I64(self.steps),
            self._steps,
            [biases[v] for _ in range(self.of.pixels) for v in self._columns()],
            step=STEPS_AT_ONCE,
        )
        rows = [sums[i : i + self.vectors] for i in range(0, len(sums), self.vectors)]

        def store(pixel: ir.Value, values: list[ir.Value]) -> None:
            elements = code.builder.mul(pixel, I64(self.problem.out_channels))
            row = code.at(y, elements, self._element())
            added = code.at(residual, elements, self._element())
            for v, value in enumerate(values):
                if self.of.with_residual:
                    value = code.builder.fadd(value, self._load(added, v))
                self._store(value, row, v)

        if self.problem.activations[1] in LONG:
            code.for_rows(rows, store)
        else:
            for pixel, values in enumerate(rows):
                store(I64(pixel), values)
        return code.end()

    def _columns(self) -> range:
        return range(self.vectors)

    def _element(self) -> ir.Type:
        return I16 if self.problem.dtype == "bf16" else F32

    def _steps(self, at: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        code, b = self.code, self.code.builder
        tile, weights, _, _, following, panel_ahead, _ = code.arguments
        if self.of.prefetch:
            self.of.prefetch.emit(code, following, at, self.steps, STEPS_AT_ONCE)
        if self.of.ahead:
            self.of.ahead.emit(code, panel_ahead, at, self.steps, STEPS_AT_ONCE)
        word = I32 if self.dot else F32
        words = ir.VectorType(word, self.isa.lanes)
        stride = row_stride(self.problem, self.isa) // (2 if self.dot else 1)
        panel = code.at(weights, b.mul(at, I64(self.vectors)), words)
        column = code.at(tile, at, word)
        for step in range(STEPS_AT_ONCE):
            factors = [
                code.load(code.at(panel, step * self.vectors + v, words), words)
                for v in self._columns()
            ]
            for pixel in range(self.of.pixels):
                value = code.load(code.at(column, pixel * stride + step, word), word)
                pixel_value = code.broadcast(value, self.isa.lanes)
                for v in self._columns():
                    index = pixel * self.vectors + v
                    sums[index] = self._multiply_add(pixel_value, factors[v], sums[index])
        return sums

    def _multiply_add(self, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
        if not self.dot:
            return self.code.fma(a, b, total)
        signature = ir.FunctionType(self.vector, [self.vector, a.type, b.type])
        dot = ir.InlineAsm(signature, "vdpbf16ps $3, $2, $0", "=v,0,v,v")
        return self.code.builder.call(dot, [total, a, b])

    def _there(self, v: int) -> int:
        """How many of a vector's lanes have channels."""
        return min(self.isa.lanes, self.of.channels - v * self.isa.lanes)

    def _load(self, row: ir.Value, v: int) -> ir.Value:
        """A vector of a row of the residual, in f32."""
        code, lanes = self.code, self.isa.lanes
        place = code.at(row, v * lanes, self._element())
        if self.problem.dtype == "f32":
            return code.load(place, self.vector, self._there(v))
        halves = code.load(place, ir.VectorType(I16, lanes), self._there(v))
        return from_bf16(code, halves)

    def _store(self, total: ir.Value, row: ir.Value, v: int) -> None:
        code, lanes = self.code, self.isa.lanes
        value = activate(code, self.problem.activations[1], total)
        if self.problem.dtype == "bf16":
            value = to_bf16(code, value, self.dot)
        code.store(
            value, code.at(row, v * lanes, self._element()), self._there(v), self.of.plan.streaming
        )
