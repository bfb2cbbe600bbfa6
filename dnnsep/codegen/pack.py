"""A layer's weights as its kernels read them: one block of memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen.layer import Layer
from dnnsep.weights import Weights

_ALIGN = 4096


@dataclass(frozen=True)
class Packing:
    """How a layer's weights lie in memory: all that decides it, and nothing of an input's size but
    which taps of the kernel meet it at all.

    First come the source's own weights, then, at ``matrix`` bytes from the start, the panels of
    ``vectors`` vectors of output channels, ``panel_bytes`` each, then, at ``table``, the product's
    table (see stages/finish.py). ``whole_panels`` are as wide as that; where output channels are
    left, one more panel has ``tail_channels``.
    """

    layer: Layer
    vectors: int

    @cached_property
    def panel_channels(self) -> int:
        return self.vectors * self.layer.isa.lanes

    @cached_property
    def whole_panels(self) -> int:
        return self.layer.out_channels // self.panel_channels

    @cached_property
    def tail_channels(self) -> int:
        return self.layer.out_channels % self.panel_channels

    @cached_property
    def panels(self) -> int:
        return self.whole_panels + bool(self.tail_channels)

    @cached_property
    def panel_bytes(self) -> int:
        return self.layer.depth * self.panel_channels * self.layer.dot.weight_bytes

    @cached_property
    def matrix(self) -> int:
        source = self.layer.source
        return _up(source.packed_bytes(self.layer.isa, self.layer.dot) if source else 0)

    @cached_property
    def table(self) -> int:
        return self.matrix + _up(self.panels * self.panel_bytes)

    @cached_property
    def size(self) -> int:
        """Bytes of all packed weights together."""
        product = self.layer.product
        if product is None:
            return self.matrix
        return self.table + 4 * product.finish.rows * self.panels * self.panel_channels

    def pack(self, weights: Weights) -> NDArray[np.uint8]:
        """Returns the weights laid out, in memory that starts at a cache line."""
        layer, source, product = self.layer, self.layer.source, self.layer.product
        room = np.zeros(self.size + 64, np.uint8)
        memory = room[-room.ctypes.data % 64 :][: self.size]
        weights = layer.kept.of(weights) if layer.kept is not None else weights
        sections: list[tuple[int, NDArray[Any]]] = []
        if source is not None:
            sections.append((0, source.pack(layer.isa, layer.dot, weights)))
        if product is not None:
            matrix = product.pack(layer.isa, layer.dot, self.vectors, layer.order, weights)
            sections.append((self.matrix, matrix))
            sections.append((self.table, product.pack_table(layer.isa, self.vectors, weights)))
        for start, section in sections:
            flat = section.view(np.uint8)
            memory[start : start + flat.size] = flat
        return memory


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
