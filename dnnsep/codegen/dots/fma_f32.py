"""f32 times f32 by fused multiply-adds: AVX2 and AVX-512 alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.dots.base import VectorDot
from dnnsep.codegen.lang.dtype import Element
from dnnsep.codegen.lang.emit import F32, Code
from dnnsep.codegen.lang.isa import Isa


class FmaF32(VectorDot):
    name = "fma_f32"
    dtype = "f32"
    element = F32
    bytes = 4
    k = 1
    word = F32
    reads_input = True

    def step(self, code: Code, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return code.fma(a, b, total)

    def of_input(self, code: Code, element: Element, value: ir.Value) -> ir.Value:
        return element.widened(code, value)

    def store_block(self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value) -> None:
        for index, value in enumerate(values):
            code.store(value, code.at(place, index, value.type))

    def pack(self, matrix: NDArray[np.float32], isa: Isa) -> NDArray[Any]:
        return matrix.reshape(-1)
