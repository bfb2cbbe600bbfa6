"""Bytes multiplied and added up in int32: four u8 by four s8 a step.

Sums are exact: none of these saturates on the way.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.dots.base import VectorDot
from dnnsep.codegen.lang.dtype import ByteElement, Element
from dnnsep.codegen.lang.emit import BYTE, I16, I32, Code
from dnnsep.codegen.lang.isa import VEX_VNNI, VNNI, Isa

FOUR = 4


class ByteDot(VectorDot):
    """A step takes four channels of a pixel, which are bytes of a word."""

    dtype = "u8s8"
    total = I32
    element = BYTE
    bytes = 1
    k = FOUR
    word = I32
    reads_input = True

    def of_input(self, code: Code, element: Element, value: ir.Value) -> ir.Value:
        assert isinstance(element, ByteElement)
        return element.moved(code, value)

    def pack(self, matrix: NDArray[np.float32], isa: Isa) -> NDArray[Any]:
        return self.pack_words(matrix, isa.lanes)

    @abstractmethod
    def pack_words(self, matrix: NDArray[np.float32], lanes: int) -> NDArray[Any]:
        """As ``pack``, for vectors of so many words."""

    def store_block(self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value) -> None:
        raise NotImplementedError("the depthwise stage of bytes writes them itself")


class VnniU8S8(ByteDot):
    """By one instruction, vpdpbusd."""

    name = "vnni_u8s8"
    needs = (VNNI,)
    prefix = ""

    def step(self, code: Code, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        signature = ir.FunctionType(total.type, [total.type, a.type, b.type])
        dot = ir.InlineAsm(signature, f"{self.prefix}vpdpbusd $3, $2, $0", "=v,0,v,v")
        return code.builder.call(dot, [total, a, b])

    def pack_words(self, matrix: NDArray[np.float32], lanes: int) -> NDArray[Any]:
        fours = matrix.astype(np.int8).reshape(-1, FOUR, matrix.shape[1])
        return np.ascontiguousarray(fours.transpose(0, 2, 1)).reshape(-1)


class VexVnniU8S8(VnniU8S8):
    """The same instruction of CPUs that have it without AVX-512."""

    name = "vex_vnni_u8s8"
    needs = (VEX_VNNI,)
    prefix = "{vex} "


class WidenedU8S8(ByteDot):
    """By two multiplications of numbers of 16 bits, of the even and of the odd channels: for CPUs
    that have no products of bytes but such as saturate."""

    name = "widened_u8s8"
    factors = 2

    @property
    def weight_bytes(self) -> int:
        return 2

    def split(self, code: Code, words: ir.Value) -> list[ir.Value]:
        b = code.builder
        pairs = ir.VectorType(I16, 2 * words.type.count)
        halves = b.bitcast(words, pairs)
        even = b.and_(halves, code.splat(255, pairs))
        return [even, b.lshr(halves, code.splat(8, pairs))]

    def step(self, code: Code, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        pairs = ir.VectorType(I16, 2 * total.type.count)
        factors = code.builder.bitcast(b, pairs)
        products = code.instruction("vpmaddwd $2, $1, $0", total.type, a, factors)
        return code.builder.add(total, products)

    def pack_words(self, matrix: NDArray[np.float32], lanes: int) -> NDArray[Any]:
        """Of each vector of output channels the even channels of a step come before the odd."""
        columns = matrix.shape[1] // lanes
        steps = matrix.astype(np.int16).reshape(-1, 2, 2, columns, lanes)
        # (steps, pair, half, vector, lane) as (steps, vector, half, lane, pair)
        return np.ascontiguousarray(steps.transpose(0, 3, 2, 4, 1)).reshape(-1)
