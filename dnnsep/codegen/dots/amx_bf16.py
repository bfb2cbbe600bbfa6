"""Tiles of bf16 multiplied by AMX, tdpbf16ps, or by the same in software."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.dots.base import Dot
from dnnsep.codegen.dots.dp_bf16 import DpBf16
from dnnsep.codegen.lang.dtype import ELEMENTS, Element
from dnnsep.codegen.lang.emit import I16, Code
from dnnsep.codegen.lang.isa import TILES, Isa
from dnnsep.codegen.lang.tiles import ROWS

# Channels of a pixel in a tile at most: a row is 64 bytes.
_MOST = 32
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


class AmxBf16(Dot):
    """Sums are in up to four tiles, two of pixels by two of output channels, or one by four.

    A tile of pixels is up to 16 of them by ``step_channels`` channels, as they are in memory; a
    tile of weights is as many channels by a vector of output channels, in pairs as DpBf16 has them.
    """

    name = "amx_bf16"
    dtype = "bf16"
    needs = (TILES,)
    element = I16
    bytes = 2
    k = 2
    vectors = 4
    reads_input = True
    in_tiles = True

    def step_channels(self, depth: int) -> int:
        """Returns the channels that a step of a product of so many channels takes: the most that a
        tile holds and that divide them, so that the order of sums depends on the depth alone."""
        return max(n for n in range(2, _MOST + 1, 2) if depth % n == 0)

    def depth(self, channels: int) -> int:
        """Whole steps: of channels that come out as few enough of them nothing is filled up."""
        even = channels + channels % 2
        fewest = -(-channels // _MOST)
        if even // self.step_channels(even) <= _MORE_STEPS * fewest:
            return even
        return fewest * _MOST

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

    def of_input(self, code: Code, element: Element, value: ir.Value) -> ir.Value:
        return value

    def store_block(self, code: Code, isa: Isa, values: list[ir.Value], place: ir.Value) -> None:
        if isa.has("avx512bf16"):
            DpBf16().store_block(code, isa, values, place)
            return
        for index, value in enumerate(values):
            at = code.at(place, index * isa.lanes, I16)
            ELEMENTS["bf16"].store(code, isa, value, at)

    def pack(self, matrix: NDArray[np.float32], isa: Isa) -> NDArray[Any]:
        """Two vectors of output channels after two, as they are read."""
        width = PAIR * isa.lanes
        pairs = (matrix[:, first : first + width] for first in range(0, matrix.shape[1], width))
        return np.concatenate([DpBf16().pack(np.ascontiguousarray(p), isa) for p in pairs])
