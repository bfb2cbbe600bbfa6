"""Resized images, as torch's upsampling defines them: which pixels each output is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.dtypes import DTYPES, Array

Pair = tuple[int, int]


@dataclass(frozen=True)
class Taps:
    """Of each output along an axis: the places of the two inputs that it is made of, (outputs, 2),
    and what they are multiplied by."""

    places: NDArray[np.int64]
    weights: Array


@dataclass(frozen=True)
class Resizing:
    """Images brought to a size; ``mode`` is "nearest" or "bilinear".

    ``scales`` are the factors of height and width where they are given: places are then computed
    from them, not from the sizes. With ``align_corners`` the centres of the corners' pixels are
    the corners.
    """

    mode: str
    output_size: Pair
    scales: tuple[float | None, float | None] = (None, None)
    align_corners: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what torch does not take."""
        if self.mode not in ("nearest", "bilinear"):
            raise ValueError(f"mode {self.mode!r}: must be nearest or bilinear")
        if self.align_corners and self.mode == "nearest":
            raise ValueError("align_corners: only bilinear has it")
        if min(self.output_size) < 1:
            raise ValueError(f"output_size {self.output_size}: must be at least 1")

    def taps(self, axis: int, size: int) -> Taps:
        """Returns what the outputs of an axis are made of; computed in f32, as torch does."""
        outputs = self.output_size[axis]
        if size == outputs:
            places = np.arange(outputs, dtype=np.float32)
        else:
            places = self._source(axis, size)
        first = np.minimum(np.floor(places).astype(np.int64), size - 1)
        if self.mode == "nearest":
            return Taps(np.stack([first, first], 1), np.ones((outputs, 2), np.float32))
        second = np.minimum(first + 1, size - 1)
        share = np.clip(places - first.astype(np.float32), 0, 1).astype(np.float32)
        return Taps(np.stack([first, second], 1), np.stack([1 - share, share], 1))

    def _source(self, axis: int, size: int) -> Array:
        """Returns where in the input each output is; those before the first pixel are at it."""
        outputs = self.output_size[axis]
        number = np.arange(outputs, dtype=np.float32)
        if self.align_corners:
            step = np.float32(size - 1) / np.float32(max(1, outputs - 1))
            return number * step
        scale = self.scales[axis]
        step = np.float32(size) / np.float32(outputs)
        if scale is not None and scale > 0:
            step = np.float32(1.0 / scale)
        if self.mode == "nearest":
            # Torch halves whole numbers, whatever scale is given.
            return number * np.float32(0.5) if outputs == 2 * size else number * step
        half = np.float32(0.5)
        found: Array = np.maximum((number + half) * step - half, np.float32(0))
        return found

    def naive(self, x: NDArray[np.floating]) -> Exact:
        """Returns the result in float64, (N, OH, OW, C), of x, (N, H, W, C)."""
        y: Exact = x.astype(np.float64)
        for axis in (0, 1):
            taps = self.taps(axis, x.shape[1 + axis])
            first, second = (np.take(y, taps.places[:, side], 1 + axis) for side in (0, 1))
            if self.mode == "nearest":
                y = first
                continue
            shape = [1, 1, 1, 1]
            shape[1 + axis] = -1
            weights = [taps.weights[:, side].reshape(shape).astype(np.float64) for side in (0, 1)]
            y = first * weights[0] + second * weights[1]
        return y

    def bound(self, x: NDArray[np.floating], dtype: str) -> Exact:
        """Returns how far from the naive result a right one may be, which was rounded to the
        dtype."""
        size = self.naive(np.abs(x))
        if self.mode == "nearest":
            return np.zeros_like(size)
        bound: Exact = (8 * 2.0**-24 + DTYPES[dtype].roundoff) * (1 + 2.0**-8) * size
        return bound
