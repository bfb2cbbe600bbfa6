"""What a way of multiplying is: a tile's pixels times a panel of weights, summed up in f32, or of
bytes in int32.

A *step* multiplies some neighbouring channels of each pixel by as many rows of the panel, and adds
the products to the sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.lang.dtype import Element
from dnnsep.codegen.lang.emit import F32, Code
from dnnsep.codegen.lang.isa import Isa

# Steps that the loop of a product in vectors has written out.
STEPS_AT_ONCE = 4
# Registers of such a product that do not hold sums: the weights of a step, one broadcast value.
_SPARE = 1
# Cycles of a multiply-add: so many sums have to be under way in each of two units.
_LATENCY = 4
# Cycles of a product beside its multiply-adds: its sums are set up and stored.
_CALL_CYCLES = 40.0


class Dot(ABC):
    """A way of multiplying. There is one object of each class.

    ``dtype`` is the problems' that it serves; ``needs`` are the features of a CPU beyond its plain
    vectors, by LLVM's names. A tile and a panel hold elements of type ``element``, ``bytes`` each
    (in a panel ``weight_bytes``), and sums are of the type ``total``; a panel is ``vectors``
    vectors of output channels wide where there are so many. ``reads_input`` says whether a tile is
    what the input is in memory, so that the input itself can stand for one; ``in_tiles``, whether
    sums are in the registers of a tile unit (see lang/tiles.py).
    """

    name: str
    dtype: str
    total: ir.Type = F32
    needs: tuple[str, ...] = ()
    element: ir.Type
    bytes: int
    k: int
    vectors: int
    reads_input: bool
    in_tiles = False

    @property
    def weight_bytes(self) -> int:
        return self.bytes

    @abstractmethod
    def depth(self, channels: int) -> int:
        """Returns the channels with those that fill them up to what a product takes."""

    @abstractmethod
    def reads(self, channels: int) -> bool:
        """Returns whether a product can read pixels of so many channels where they are, with
        nothing to fill them up."""

    @abstractmethod
    def pixels(self, isa: Isa, vectors: int) -> int:
        """Returns how many pixels at most a product by a panel of so many vectors takes."""

    @abstractmethod
    def cycles(self, isa: Isa, pixels: int, vectors: int, depth: int) -> float:
        """Returns the cycles of a product, as far as the cost model knows: where the CPU runs it at
        its full rate."""

    @abstractmethod
    def of_input(self, code: Code, element: Element, value: ir.Value) -> ir.Value:
        """Returns a vector of the input's elements as a tile holds them."""

    @abstractmethod
    def store_block(self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value) -> None:
        """Writes a whole block (see lang/dtype.py), vectors of f32, into a tile."""

    @abstractmethod
    def pack(self, matrix: NDArray[np.float32], isa: Isa) -> NDArray[Any]:
        """Returns a panel, flat, of a matrix (channels of a tile, output channels) whose values the
        element can hold; its rows are a multiple of ``k``. Groups of ``k`` rows follow each other,
        with the group's rows of one output channel side by side."""

    def __repr__(self) -> str:
        return self.name


class VectorDot(Dot):
    """One that keeps sums in vector registers.

    A step takes ``k`` channels of a pixel as one ``word`` and broadcasts it; for each vector of
    sums it takes ``factors`` vectors of weights, one multiplication each.
    """

    vectors = 2
    word: ir.Type
    factors = 1

    def split(self, code: Code, words: ir.Value) -> list[ir.Value]:
        """Returns a vector of words as what each of a step's multiplications takes of it."""
        return [words]

    @abstractmethod
    def step(self, code: Code, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Returns sums + products: ``a`` and ``b`` are vectors that ``split`` gives, and of
        weights."""

    def depth(self, channels: int) -> int:
        a_round = STEPS_AT_ONCE * self.k
        return -(-channels // a_round) * a_round

    def reads(self, channels: int) -> bool:
        return self.reads_input and channels % self.k == 0

    def pixels(self, isa: Isa, vectors: int) -> int:
        return (isa.registers - (vectors + _SPARE) * self.factors) // vectors

    def cycles(self, isa: Isa, pixels: int, vectors: int, depth: int) -> float:
        """Two multiply-adds or two loads start each cycle."""
        products = pixels * vectors * self.factors
        a_step = max(products, pixels + vectors, 2 * _LATENCY) / 2
        return depth // self.k * a_step + _CALL_CYCLES
