"""One element of each of some tensors, to notice writes that torch does not count: those through
``.data``, through NumPy, and into tensors made in inference mode.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

# Integers as wide as an element, in which any bits are equal to themselves.
_BITS = {
    torch.float16: ctypes.c_int16,
    torch.bfloat16: ctypes.c_int16,
    torch.float32: ctypes.c_int32,
    torch.float64: ctypes.c_int64,
}


class Samples:
    """What one element of each tensor was when this was made: the largest, since zeros stay zeros
    when a tensor is scaled. Of tensors without floating-point elements in a CPU's memory there is
    none. The tensors must live, and stay where they are in memory, for as long as they are asked
    about."""

    def __init__(self, tensors: Iterable[Tensor | None]) -> None:
        self._cells = [
            _BITS[tensor.dtype].from_address(_largest(tensor))
            for tensor in tensors
            if tensor is not None and _is_readable(tensor)
        ]
        self._values = [cell.value for cell in self._cells]

    def hold(self) -> bool:
        """Returns whether the elements are what they were."""
        return [cell.value for cell in self._cells] == self._values

    @property
    def halves(self) -> list[tuple[int, int]]:
        """Returns the address of each two bytes of the elements, and what they were as a signed
        integer."""
        return [
            (place, ctypes.c_int16.from_address(place).value)
            for cell in self._cells
            for first in [ctypes.addressof(cell)]
            for place in range(first, first + ctypes.sizeof(cell), 2)
        ]


def _is_readable(tensor: Tensor) -> bool:
    strided = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return strided and tensor.dtype in _BITS and tensor.numel() > 0


def _largest(tensor: Tensor) -> int:
    """Returns the address of a tensor's element of the largest magnitude."""
    where = np.unravel_index(int(tensor.detach().abs().argmax()), tensor.shape)
    return tensor.data_ptr() + tensor.element_size() * int(np.dot(where, tensor.stride()))
