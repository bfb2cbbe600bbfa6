"""What a way of multiplying is: a tile's pixels times a panel of weights, in vectors of f32 sums.

A *step* multiplies ``k`` neighbouring channels of each pixel, loaded as one word and broadcast, by
as many rows of the panel, and adds the products to the sums. The panel is laid out so that a step's
weights for one vector of output channels are one vector of words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.lang.dtype import Element
from dnnsep.codegen.lang.emit import Code
from dnnsep.codegen.lang.isa import Isa


class Dot(ABC):
    """A way of multiplying. There is one object of each class.

    ``dtype`` is the problems' that it serves; ``needs`` are the features of a CPU beyond its plain
    vectors, by LLVM's names. A tile and a panel hold elements of type ``element``, ``bytes`` each;
    a step takes ``k`` of them as one ``word``. ``reads_input`` says whether a tile is what the
    input is in memory, so that the input itself can stand for one.
    """

    name: str
    dtype: str
    needs: tuple[str, ...] = ()
    element: ir.Type
    bytes: int
    k: int
    word: ir.Type
    reads_input: bool

    @abstractmethod
    def step(self, code: Code, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Returns sums + products: ``a`` and ``b`` are vectors of words, ``total`` of f32."""

    @abstractmethod
    def of_input(self, code: Code, element: Element, value: ir.Value) -> ir.Value:
        """Returns a vector of the input's elements as a tile holds them."""

    @abstractmethod
    def store_block(self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value) -> None:
        """Writes a whole block (see lang/dtype.py), vectors of f32, into a tile."""

    @abstractmethod
    def pack(self, matrix: NDArray[np.float32]) -> NDArray[Any]:
        """Returns a panel, flat, of a matrix (channels of a tile, output channels) whose values the
        element can hold; its rows are a multiple of ``k``."""

    def __repr__(self) -> str:
        return self.name
