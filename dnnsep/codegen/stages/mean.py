"""The mean of each channel over all pixels of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from dnnsep.activations import Exact
from dnnsep.codegen.dots import Dot
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.stages.base import Image, Stage, bound_of_sum
from dnnsep.problem import Problem
from dnnsep.weights import Weights

# Pixels added at a time, each to sums of its own: an addition takes as many cycles.
_AT_ONCE = 4


@dataclass(frozen=True)
class Mean(Stage):
    """Its pieces are vectors of channels of an image each."""

    channels: int
    dtype: str

    def naive(self, x: Exact, weights: Weights) -> Exact:
        mean: Exact = x.astype(np.float64).mean((2, 3), keepdims=True)
        return mean

    def bound(self, scale: Exact, error: Exact, weights: Weights) -> tuple[Exact, Exact]:
        terms = scale.shape[2] * scale.shape[3]
        return bound_of_sum(
            self.naive(scale, weights), self.naive(error, weights), terms, "none", self.dtype
        )

    def pieces_of_image(self, isa: Isa, runs: int) -> int:
        """As many as vectors of channels: there is one output pixel only."""
        return -(-self.channels // isa.lanes)

    def cycles_alone(self, problem: Problem, isa: Isa, dot: Dot) -> float:
        """Two loads start a cycle."""
        vectors = problem.batch * self.pieces_of_image(isa, 1)
        return problem.height * problem.width * vectors / 2

    def emit_pieces(
        self,
        code: Code,
        isa: Isa,
        image: Image,
        y_pitch: int,
        x: ir.Value,
        y: ir.Value,
        first: ir.Value,
        last: ir.Value,
    ) -> None:
        _Emitter(code, self, isa, image, y_pitch).emit(x, y, first, last)


class _Emitter:
    def __init__(self, code: Code, stage: Mean, isa: Isa, image: Image, y_pitch: int) -> None:
        self.code, self.isa, self.pixels = code, isa, image.known_width
        self.pitch, self.y_pitch = image.pitch, y_pitch
        self.channels, self.vectors = stage.channels, stage.pieces_of_image(isa, 1)
        self.element = ELEMENTS[stage.dtype]

    def emit(self, x: ir.Value, y: ir.Value, first: ir.Value, last: ir.Value) -> None:
        code, b = self.code, self.code.builder
        tail = self.channels % self.isa.lanes

        def one(piece: ir.Value) -> None:
            image, vector = b.sdiv(piece, I64(self.vectors)), b.srem(piece, I64(self.vectors))
            channel = b.mul(vector, I64(self.isa.lanes))
            start = b.add(b.mul(image, I64(self.pixels * self.pitch)), channel)
            source = code.at(x, start, self.element.type)
            mean = b.add(b.mul(image, I64(self.y_pitch)), channel)
            target = code.at(y, mean, self.element.type)
            if not tail:
                self._vector(source, target, None)
                return
            with b.if_else(b.icmp_signed("<", vector, I64(self.vectors - 1))) as (whole, rest):
                with whole:
                    self._vector(source, target, None)
                with rest:
                    self._vector(source, target, tail)

        code.for_each(first, last, one)

    def _vector(self, source: ir.Value, target: ir.Value, lanes: int | None) -> None:
        """Emits the mean of a vector of channels, or of its first ``lanes``."""
        code, b = self.code, self.code.builder
        zero = ir.Constant(ir.VectorType(F32, self.isa.lanes), None)

        def add(count: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
            def body(pixel: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                for index in range(count):
                    place = b.mul(b.add(pixel, I64(index)), I64(self.pitch))
                    read = code.at(source, place, self.element.type)
                    value = self.element.load(code, read, self.isa.lanes, lanes)
                    sums[index] = b.fadd(sums[index], value)
                return sums

            return body

        whole = self.pixels // _AT_ONCE * _AT_ONCE
        sums = code.for_range(I64(0), I64(whole), add(_AT_ONCE), [zero] * _AT_ONCE, _AT_ONCE)
        sums = code.for_range(I64(whole), I64(self.pixels), add(1), sums)
        total = b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3]))
        mean = b.fmul(total, code.splat(1 / self.pixels, total.type))
        self.element.store(code, self.isa, mean, target, lanes)
