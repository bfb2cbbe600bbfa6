"""How tensors lie in memory, and which of that is rows of channels, as kernels read and write them.

A tensor on torch's meta device stands for where a value's elements are: its size, its strides, and
its offset into a buffer. Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Pixels one after the other, each a row of channels: elements ``pitch`` apart, from an offset
    in elements on."""

    pixels: int
    channels: int
    pitch: int
    offset: int

    @property
    def dense(self) -> bool:
        return self.pitch == self.channels


def dense(size: Sequence[int], minor: int, dtype: torch.dtype) -> Tensor:
    """Returns where a tensor lies whose dimension ``minor`` varies fastest, then the others from
    the last to the first, without gaps."""
    strides, step = [0] * len(size), 1
    minor %= max(1, len(size))
    others = [d for d in reversed(range(len(size))) if d != minor]
    for dim in [minor, *others][: len(size)]:
        strides[dim] = step
        step *= max(1, size[dim])
    return torch.empty_strided(tuple(size), strides, dtype=dtype, device="meta")


def images(size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Returns where channels-last images (N, C, H, W) lie."""
    return dense(size, 1, dtype)


def minor_dim(like: Tensor) -> int:
    """Returns the dimension that varies fastest: of several of stride 1 the longest, the last."""
    candidates = [d for d in range(like.dim()) if like.stride(d) == 1]
    return max(candidates, key=lambda d: (like.shape[d], d), default=like.dim() - 1)


def rows_of(like: Tensor, channel_dim: int) -> Rows | None:
    """Returns a tensor as rows of the channels of one of its dimensions; the pixels are all other
    dimensions in their order. None where it does not lie so."""
    size, strides = like.shape, like.stride()
    channel_dim %= max(1, like.dim())
    channels = size[channel_dim]
    if channels > 1 and strides[channel_dim] != 1:
        return None
    pixels = [d for d in range(like.dim()) if d != channel_dim and size[d] > 1]
    pitch = strides[pixels[-1]] if pixels else channels
    if pitch < channels:
        return None
    step = pitch
    for d in reversed(pixels):
        if strides[d] != step:
            return None
        step *= size[d]
    return Rows(prod(size) // max(1, channels), channels, pitch, offset_of(like))


def same_places(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors of one size have their elements in the same order in memory, in
    rows of the same dimension."""
    if one.shape != other.shape:
        return False
    dim = minor_dim(one)
    return rows_of(one, dim) is not None and rows_of(other, dim) is not None


def extent_bytes(like: Tensor) -> int:
    """Returns the bytes from the start of a tensor's buffer to the end of its last element."""
    if like.numel() == 0:
        return 0
    reach = sum((size - 1) * step for size, step in zip(like.shape, like.stride(), strict=True))
    return (offset_of(like) + reach + 1) * like.element_size()


def offset_of(like: Tensor) -> int:
    """Returns how many elements from the start of its buffer a tensor begins."""
    return int(like.storage_offset())


def reshaped_minor(size: Sequence[int], minor: int, after: Sequence[int]) -> int:
    """Returns the dimension of a reshaped tensor that the elements of a dimension go to: what stays
    neighbours in memory when the reshape has to copy."""
    inner = prod(size[minor + 1 :])
    step = 1
    for dim in reversed(range(len(after))):
        step *= after[dim]
        if step > inner:
            return dim
    return max(0, len(after) - 1)


def is_alias(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors share their storage."""
    of_storages: Any = torch._C
    return bool(of_storages._is_alias_of(one, other))


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Returns how images lie in memory: channels last, or else contiguous."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
