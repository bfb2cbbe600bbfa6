"""The mean of each channel over all pixels of an image."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from dnnsep.codegen.lang.bf16 import from_bf16, to_bf16
from dnnsep.codegen.lang.emit import F32, I16, I64, POINTER, Code
from dnnsep.codegen.plan import Plan
from dnnsep.single import Mean

# Pixels added at a time, each to sums of its own: an addition takes as many cycles.
_AT_ONCE = 4


def emit_mean(module: ir.Module, problem: Mean, plan: Plan) -> ir.Function:
    """f(part, x, y, ...): the means of a range of pieces: a vector of channels of an image each."""
    return _Mean(Code(module, "part", [I64, *[POINTER] * 6]).internal(), problem, plan).emit()


class _Mean:
    def __init__(self, code: Code, problem: Mean, plan: Plan) -> None:
        self.code, self.problem, self.plan = code, problem, plan
        self.lanes, self.channels = plan.isa.lanes, problem.in_channels
        self.element = I16 if problem.dtype == "bf16" else F32
        self.pixels = problem.height * problem.width

    def emit(self) -> ir.Function:
        code, b = self.code, self.code.builder
        part, x, y, *_ = code.arguments
        first, last = (
            b.sdiv(b.mul(n, I64(self.plan.pieces)), I64(self.plan.pixel_parts))
            for n in (part, b.add(part, I64(1)))
        )
        vectors = self.plan.pieces // self.problem.batch
        tail = self.channels % self.lanes

        def one(piece: ir.Value) -> None:
            image, vector = b.sdiv(piece, I64(vectors)), b.srem(piece, I64(vectors))
            channel = b.mul(vector, I64(self.lanes))
            start = b.add(b.mul(image, I64(self.pixels * self.channels)), channel)
            source = code.at(x, start, self.element)
            mean = b.add(b.mul(image, I64(self.channels)), channel)
            target = code.at(y, mean, self.element)
            if not tail:
                self._vector(source, target, None)
                return
            with b.if_else(b.icmp_signed("<", vector, I64(vectors - 1))) as (whole, rest):
                with whole:
                    self._vector(source, target, None)
                with rest:
                    self._vector(source, target, tail)

        code.for_each(first, last, one)
        return code.end()

    def _vector(self, source: ir.Value, target: ir.Value, lanes: int | None) -> None:
        """Of some channels: the first ``lanes`` of a vector."""
        code, b = self.code, self.code.builder
        zero = ir.Constant(ir.VectorType(F32, self.lanes), None)

        def add(count: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
            def body(pixel: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                for index in range(count):
                    place = b.mul(b.add(pixel, I64(index)), I64(self.channels))
                    value = self._load(code.at(source, place, self.element), lanes)
                    sums[index] = b.fadd(sums[index], value)
                return sums

            return body

        whole = self.pixels // _AT_ONCE * _AT_ONCE
        sums = code.for_range(I64(0), I64(whole), add(_AT_ONCE), [zero] * _AT_ONCE, _AT_ONCE)
        sums = code.for_range(I64(whole), I64(self.pixels), add(1), sums)
        total = b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3]))
        mean = b.fmul(total, code.splat(1 / self.pixels, total.type))
        if self.problem.dtype == "bf16":
            mean = to_bf16(code, mean, self.plan.isa.dot_bf16)
        code.store(mean, target, lanes)

    def _load(self, place: ir.Value, lanes: int | None) -> ir.Value:
        value = self.code.load(place, ir.VectorType(self.element, self.lanes), lanes)
        return from_bf16(self.code, value) if self.problem.dtype == "bf16" else value
