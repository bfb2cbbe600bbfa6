"""Pairs of bf16 multiplied and added to f32 in one instruction, vdpbf16ps."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.dots.base import VectorDot
from dnnsep.codegen.lang.dtype import Element
from dnnsep.codegen.lang.emit import I16, I32, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.dtypes import BF16


class DpBf16(VectorDot):
    name = "dp_bf16"
    dtype = "bf16"
    needs = ("avx512bf16",)
    element = I16
    bytes = 2
    k = 2
    word = I32
    reads_input = True

    def step(self, code: Code, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        signature = ir.FunctionType(total.type, [total.type, a.type, b.type])
        dot = ir.InlineAsm(signature, "vdpbf16ps $3, $2, $0", "=v,0,v,v")
        return code.builder.call(dot, [total, a, b])

    def of_input(self, code: Code, element: Element, value: ir.Value) -> ir.Value:
        return value

    def store_block(self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value) -> None:
        code.store(self.converted(code, isa, *values), place)

    @staticmethod
    def converted(code: Code, isa: Isa, low: ir.Value, high: ir.Value) -> ir.Value:
        """Returns two vectors of f32 as one of bf16, rounded to nearest."""
        pair = ir.VectorType(I16, 2 * isa.lanes)
        return code.instruction("vcvtne2ps2bf16 $1, $2, $0", pair, low, high)

    def pack(self, matrix: NDArray[np.float32], isa: Isa) -> NDArray[Any]:
        halves = BF16.stored(matrix)
        return halves.reshape(-1, 2, matrix.shape[1]).transpose(0, 2, 1).reshape(-1)
