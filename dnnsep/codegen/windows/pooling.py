"""Max and average pooling, as torch defines them: sizes, a naive form, and error bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.dtypes import DTYPES

Pair = tuple[int, int]


@dataclass(frozen=True)
class Pooling:
    """The largest or the mean value under a kernel; ``kind`` is "max" or "mean".

    ``ceil_mode`` keeps outputs whose kernel reaches beyond the padding. A mean that ``counts_pad``
    is divided by all places of the kernel that are not beyond the padding, otherwise by those that
    are in the image. A maximum is NaN where any value under the kernel is.
    """

    kind: str
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False
    counts_pad: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for what torch does not take."""
        if self.kind not in ("max", "mean"):
            raise ValueError(f"kind {self.kind!r}: must be max or mean")
        if min(*self.kernel, *self.stride, *self.dilation) < 1:
            raise ValueError(f"{self}: kernel, stride and dilation must be at least 1")
        if any(not 0 <= 2 * p <= k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise ValueError(f"padding {self.padding}: must be at most half the kernel")
        if self.kind == "mean" and self.dilation != (1, 1):
            raise ValueError(f"dilation {self.dilation}: a mean has none")

    @property
    def reach(self) -> Pair:
        """How many rows and columns of an image the kernel spans."""
        rows, columns = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        return rows, columns

    def output_size(self, height: int, width: int) -> Pair:
        """Returns the height and width of the result. Raises ValueError where it has none."""
        rows, columns = (self._outputs(axis, size) for axis, size in enumerate((height, width)))
        if min(rows, columns) < 1:
            raise ValueError(f"{self}: larger than an image of {height} x {width}")
        return rows, columns

    def _outputs(self, axis: int, size: int) -> int:
        pad, stride = self.padding[axis], self.stride[axis]
        room = size + 2 * pad - self.reach[axis]
        count = (room + (stride - 1 if self.ceil_mode else 0)) // stride + 1
        # The last one has to begin in the image or in the padding before it.
        if self.ceil_mode and (count - 1) * stride >= size + pad:
            count -= 1
        return count

    def naive(self, x: NDArray[np.floating]) -> Exact:
        """Returns the result in float64, (N, OH, OW, C), of x, (N, H, W, C)."""
        exact = x.astype(np.float64)
        if self.kind == "max":
            return self._each(exact, lambda taps, _: taps.max((1, 2), initial=-np.inf))
        return self._each(exact, lambda taps, count: taps.sum((1, 2)) / count)

    def bound(self, x: NDArray[np.floating], dtype: str) -> Exact:
        """Returns how far from the naive result a right one may be: a sum of so many terms in any
        order, times a rounded reciprocal, rounded to the dtype."""
        if self.kind == "max":
            return np.zeros_like(self.naive(x))
        size = self.naive(np.abs(x))
        terms = self.kernel[0] * self.kernel[1] + 2
        roundoff: float = DTYPES[dtype].roundoff
        bound: Exact = (terms * 2.0**-24 + roundoff) * (1 + roundoff) * size
        return bound

    def _each(self, x: Exact, reduce: Callable[[Exact, int], Exact]) -> Exact:
        n, height, width, channels = x.shape
        rows, columns = self.output_size(height, width)
        y = np.zeros((n, rows, columns, channels))
        for row, (rows_in, row_count) in enumerate(self._taps(0, height, rows)):
            for column, (columns_in, column_count) in enumerate(self._taps(1, width, columns)):
                taps = x[:, rows_in][:, :, columns_in]
                y[:, row, column] = reduce(taps, row_count * column_count)
        return y

    def _taps(self, axis: int, size: int, outputs: int) -> Iterator[tuple[list[int], int]]:
        """Yields for each output the places in the image, and how many a mean counts."""
        kernel, dilation = self.kernel[axis], self.dilation[axis]
        pad = self.padding[axis]
        for output in range(outputs):
            start = output * self.stride[axis] - pad
            places = [start + k * dilation for k in range(kernel)]
            inside = [place for place in places if 0 <= place < size]
            counted = [place for place in places if place < size + pad]
            yield inside, len(counted if self.counts_pad else inside)
