"""Tiles multiplied by AMX, of bf16 or of bytes, or by the same in software."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.dots.base import Dot, VectorDot
from dnnsep.codegen.dots.bytes import FOUR, VnniU8S8
from dnnsep.codegen.dots.dp_bf16 import DpBf16
from dnnsep.codegen.lang.dtype import ELEMENTS, ByteElement, Element
from dnnsep.codegen.lang.emit import BYTE, I16, I32, Code
from dnnsep.codegen.lang.isa import BYTE_TILES, TILES, Isa
from dnnsep.codegen.lang.tiles import ROW_BYTES, ROWS, TileUnit

# Vectors of output channels that lie side by side in a panel.
PAIR = 2
# So many times the fewest steps are not too many where no channel has to be filled up for them.
_MORE_STEPS = 1.25
# Cycles of a product of whole tiles, until its sums are there, and until the next may start: for
# these the model has no measurement of its own, and the rate measured on a CPU corrects them. A
# Granite Rapids was measured to start one each 16 cycles.
_LATENCY, _CYCLES = 52.0, 16.0
# Cycles to store, activate and write a vector of sums: an estimate, corrected by the rate alike.
_DRAIN_CYCLES = 1.5


class AmxDot(Dot):
    """Sums are in up to four tiles, two of pixels by two of output channels, or one by four.

    A tile of pixels is up to 16 of them by ``step_channels`` channels, as they are in memory; a
    tile of weights is as many channels by a vector of output channels, in groups of ``k`` as
    ``on_vectors`` has them.
    """

    vectors = 4
    reads_input = True
    in_tiles = True
    on_vectors: VectorDot

    @abstractmethod
    def multiply(
        self, code: Code, tiles: TileUnit, unit: ir.Value, tile: int, a: int, b: int
    ) -> None:
        """Adds the product of tiles a and b to the sums in a tile."""

    @property
    def most(self) -> int:
        """Channels of a pixel in a tile at most."""
        return ROW_BYTES // self.bytes

    def step_channels(self, depth: int) -> int:
        """Returns the channels that a step of a product of so many channels takes: the most that a
        tile holds and that divide them, so that the order of sums depends on the depth alone."""
        return max(n for n in range(self.k, self.most + 1, self.k) if depth % n == 0)

    def depth(self, channels: int) -> int:
        """Whole steps: of channels that come out as few enough of them nothing is filled up."""
        whole = -(-channels // self.k) * self.k
        fewest = -(-channels // self.most)
        if whole // self.step_channels(whole) <= _MORE_STEPS * fewest:
            return whole
        return fewest * self.most

    def reads(self, channels: int) -> bool:
        return self.depth(channels) == channels

    def pixels(self, isa: Isa, vectors: int) -> int:
        return 2 * ROWS

    def cycles(self, isa: Isa, pixels: int, vectors: int, depth: int) -> float:
        high = -(-pixels // ROWS)
        at_once = 4 // high
        groups = [min(at_once, vectors - first) for first in range(0, vectors, at_once)]
        a_step = sum(max(_LATENCY, _CYCLES * high * wide) for wide in groups)
        drained = _DRAIN_CYCLES * pixels * vectors
        return depth // self.step_channels(depth) * a_step + drained

    def pack(self, matrix: NDArray[np.float32], isa: Isa) -> NDArray[Any]:
        """Two vectors of output channels after two, as they are read."""
        width = PAIR * isa.lanes
        pairs = (matrix[:, first : first + width] for first in range(0, matrix.shape[1], width))
        packed = [self.on_vectors.pack(np.ascontiguousarray(p), isa) for p in pairs]
        return np.concatenate(packed)


class AmxBf16(AmxDot):
    """By tdpbf16ps."""

    name = "amx_bf16"
    dtype = "bf16"
    needs = (TILES,)
    element = I16
    bytes = 2
    k = 2
    on_vectors = DpBf16()

    def multiply(
        self, code: Code, tiles: TileUnit, unit: ir.Value, tile: int, a: int, b: int
    ) -> None:
        tiles.multiply_bf16(code, unit, tile, a, b)

    def of_input(self, code: Code, element: Element, value: ir.Value) -> ir.Value:
        return value

    def store_block(self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value) -> None:
        if isa.has("avx512bf16"):
            DpBf16().store_block(code, isa, values, place)
            return
        for index, value in enumerate(values):
            at = code.at(place, index * isa.lanes, I16)
            ELEMENTS["bf16"].store(code, isa, value, at)


class AmxU8S8(AmxDot):
    """By tdpbusd."""

    name = "amx_u8s8"
    dtype = "u8s8"
    total = I32
    needs = (TILES, BYTE_TILES)
    element = BYTE
    bytes = 1
    k = FOUR
    on_vectors = VnniU8S8()

    def multiply(
        self, code: Code, tiles: TileUnit, unit: ir.Value, tile: int, a: int, b: int
    ) -> None:
        tiles.multiply_bytes(code, unit, tile, a, b)

    def of_input(self, code: Code, element: Element, value: ir.Value) -> ir.Value:
        assert isinstance(element, ByteElement)
        return element.moved(code, value)

    def store_block(self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value) -> None:
        raise NotImplementedError("the depthwise stage of bytes writes them itself")
