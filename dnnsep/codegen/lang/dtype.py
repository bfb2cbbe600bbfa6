"""How generated code reads and writes a dtype: always as vectors of f32 in registers.

A *block* is what the depthwise stage takes of a pixel at a time: the channels of one full load. Of
bf16 a register holds twice as many of them as of f32, so a block of bf16 is two vectors: its even
channels, which are a shift away from f32, and its odd ones, which are a mask away.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.lang.emit import BYTE, F32, I16, I32, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.dtypes import PRECISIONS


class Element(Protocol):
    """A dtype in generated code. ``lanes`` below is how many elements there are to read or write,
    None for a whole vector or block; the others are not touched, and read as zero."""

    @property
    def type(self) -> ir.Type:
        """LLVM's type of an element in memory."""

    def load(self, code: Code, place: ir.Value, count: int, lanes: int | None) -> ir.Value:
        """Returns ``count`` neighbouring elements as a vector of f32."""

    def store(
        self,
        code: Code,
        isa: Isa,
        value: ir.Value,
        place: ir.Value,
        lanes: int | None = None,
        streaming: bool = False,
    ) -> None:
        """Writes a vector of f32 as neighbouring elements, rounded to nearest."""

    def rounded(self, code: Code, isa: Isa, value: ir.Value) -> ir.Value:
        """Returns a vector of f32 as the vector of elements that ``store`` writes."""

    def widened(self, code: Code, value: ir.Value) -> ir.Value:
        """Returns a vector of elements as f32."""


class FloatElement(Element, Protocol):
    """One that the depthwise stage takes in blocks."""

    @property
    def block_vectors(self) -> int:
        """How many vectors of f32 a block is."""

    def load_block(
        self, code: Code, isa: Isa, place: ir.Value, lanes: int | None
    ) -> list[ir.Value]:
        """Returns a block as vectors of f32, in the order of ``block_order``."""

    def store_block(
        self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value, lanes: int | None
    ) -> None:
        """Writes what ``load_block`` returns, in memory's order again."""

    def block_order(self, isa: Isa) -> NDArray[np.int64]:
        """Returns the channel, counted from the block's first, in each lane of a block's vectors
        one after the other."""


class F32Element:
    type: ir.Type = F32
    block_vectors = 1

    def load(self, code: Code, place: ir.Value, count: int, lanes: int | None) -> ir.Value:
        return code.load(place, ir.VectorType(F32, count), lanes)

    def store(
        self,
        code: Code,
        isa: Isa,
        value: ir.Value,
        place: ir.Value,
        lanes: int | None = None,
        streaming: bool = False,
    ) -> None:
        code.store(value, place, lanes, streaming)

    def rounded(self, code: Code, isa: Isa, value: ir.Value) -> ir.Value:
        return value

    def widened(self, code: Code, value: ir.Value) -> ir.Value:
        return value

    def load_block(
        self, code: Code, isa: Isa, place: ir.Value, lanes: int | None
    ) -> list[ir.Value]:
        return [self.load(code, place, isa.lanes, lanes)]

    def store_block(
        self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value, lanes: int | None
    ) -> None:
        (value,) = values
        code.store(value, place, lanes)

    def block_order(self, isa: Isa) -> NDArray[np.int64]:
        return np.arange(isa.lanes)


class Bf16Element:
    type: ir.Type = I16
    block_vectors = 2

    def load(self, code: Code, place: ir.Value, count: int, lanes: int | None) -> ir.Value:
        return self.widened(code, code.load(place, ir.VectorType(I16, count), lanes))

    def store(
        self,
        code: Code,
        isa: Isa,
        value: ir.Value,
        place: ir.Value,
        lanes: int | None = None,
        streaming: bool = False,
    ) -> None:
        code.store(self.rounded(code, isa, value), place, lanes, streaming)

    def rounded(self, code: Code, isa: Isa, value: ir.Value) -> ir.Value:
        """Returns the nearest values, ties to even; NaN stays NaN. The instruction for it makes
        zeros of denormal numbers."""
        b, lanes = code.builder, value.type.count
        halves, words = ir.VectorType(I16, lanes), ir.VectorType(I32, lanes)
        if isa.has("avx512bf16") and lanes == isa.lanes:
            return code.instruction("vcvtneps2bf16 $1, $0", halves, value)
        bits = b.bitcast(value, words)
        odd = b.and_(b.lshr(bits, code.splat(16, words)), code.splat(1, words))
        nearest = b.add(b.add(bits, odd), code.splat(0x7FFF, words))
        quiet = b.or_(bits, code.splat(0x400000, words))
        chosen = b.select(b.fcmp_unordered("uno", value, value), quiet, nearest)
        return b.trunc(b.lshr(chosen, code.splat(16, words)), halves)

    def widened(self, code: Code, value: ir.Value) -> ir.Value:
        lanes = value.type.count
        words = ir.VectorType(I32, lanes)
        bits = code.builder.shl(code.builder.zext(value, words), code.splat(16, words))
        return code.builder.bitcast(bits, ir.VectorType(F32, lanes))

    def load_block(
        self, code: Code, isa: Isa, place: ir.Value, lanes: int | None
    ) -> list[ir.Value]:
        halves = code.load(place, ir.VectorType(I16, 2 * isa.lanes), lanes)
        return self.widened_block(code, isa, halves)

    def widened_block(self, code: Code, isa: Isa, halves: ir.Value) -> list[ir.Value]:
        """Returns a block in registers as load_block does."""
        b, vector = code.builder, ir.VectorType(F32, isa.lanes)
        words = ir.VectorType(I32, isa.lanes)
        pairs = b.bitcast(halves, words)
        even, odd = b.shl(pairs, code.splat(16, words)), b.and_(pairs, code.splat(-65536, words))
        return [b.bitcast(even, vector), b.bitcast(odd, vector)]

    def store_block(
        self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value, lanes: int | None
    ) -> None:
        code.store(self.rounded_block(code, isa, values), place, lanes)

    def rounded_block(self, code: Code, isa: Isa, values: list[ir.Value]) -> ir.Value:
        """Returns a block as store_block stores it, the nearest values as ``rounded``."""
        b, halves = code.builder, ir.VectorType(I16, 2 * isa.lanes)
        # Lane i of a result is lane i // 2 of the even ones or of the odd ones.
        order = [half * isa.lanes + at for at in range(isa.lanes) for half in range(2)]
        mask = ir.Constant(ir.VectorType(I32, 2 * isa.lanes), [I32(index) for index in order])
        if isa.has("avx512bf16"):
            # Rounded to one vector, which is cheaper to put in order than two are.
            both = code.instruction("vcvtne2ps2bf16 $1, $2, $0", halves, *values)
            return b.shuffle_vector(both, ir.Constant(halves, ir.Undefined), mask)
        low, high = (self.rounded(code, isa, value) for value in values)
        return b.shuffle_vector(low, high, mask)

    def block_order(self, isa: Isa) -> NDArray[np.int64]:
        return np.arange(2 * isa.lanes).reshape(isa.lanes, 2).T.reshape(-1)


class ByteElement:
    """Whole numbers of a byte, in registers as f32 from 0 to 255; numbers ``signed`` in memory are
    less by 128."""

    type: ir.Type = BYTE

    def __init__(self, signed: bool) -> None:
        self.signed = signed

    def moved(self, code: Code, value: ir.Value) -> ir.Value:
        """Returns a vector of bytes in memory's form as unsigned ones, or the other way around."""
        return code.builder.xor(value, code.splat(-128, value.type)) if self.signed else value

    def load(self, code: Code, place: ir.Value, count: int, lanes: int | None) -> ir.Value:
        return self.widened(code, code.load(place, ir.VectorType(BYTE, count), lanes))

    def store(
        self,
        code: Code,
        isa: Isa,
        value: ir.Value,
        place: ir.Value,
        lanes: int | None = None,
        streaming: bool = False,
    ) -> None:
        code.store(self.rounded(code, isa, value), place, lanes, streaming)

    def rounded(self, code: Code, isa: Isa, value: ir.Value) -> ir.Value:
        """Returns the nearest whole numbers, ties to even, of numbers from 0 to 255."""
        words = nearest(code, value)
        return self.moved(code, code.builder.trunc(words, ir.VectorType(BYTE, value.type.count)))

    def widened(self, code: Code, value: ir.Value) -> ir.Value:
        lanes = value.type.count
        words = code.builder.zext(self.moved(code, value), ir.VectorType(I32, lanes))
        return code.builder.sitofp(words, ir.VectorType(F32, lanes))


def nearest(code: Code, value: ir.Value) -> ir.Value:
    """Returns a vector of f32 as whole numbers of 32 bits, ties to even."""
    words = ir.VectorType(I32, value.type.count)
    return code.instruction("vcvtps2dq $1, $0", words, value)


# Those of floating point, and all that a tensor can hold.
ELEMENTS: dict[str, FloatElement] = {"f32": F32Element(), "bf16": Bf16Element()}
TENSOR_ELEMENTS: dict[str, Element] = {
    **ELEMENTS,
    "u8": ByteElement(signed=False),
    "s8": ByteElement(signed=True),
}


def input_element(dtype: str) -> Element:
    """Returns what the input of a problem in a dtype holds."""
    return TENSOR_ELEMENTS[PRECISIONS[dtype].source.name]


def output_element(dtype: str) -> Element:
    """Returns what the output of a problem in a dtype holds."""
    return TENSOR_ELEMENTS[PRECISIONS[dtype].destination.name]
