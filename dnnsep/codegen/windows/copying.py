"""Strided copies: which dimensions there are once those that can be are merged, and how they are
copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_DIMENSIONS = 6


@dataclass(frozen=True)
class Dimension:
    """Its size, and how many elements apart its neighbours are in what is read and written."""

    size: int
    x: int
    y: int

    def holds(self, inner: Dimension) -> bool:
        """Whether it and the dimension next to it inside are one."""
        return self.x == inner.size * inner.x and self.y == inner.size * inner.y


# What fills up the dimensions to as many as kernels have.
SINGLE = Dimension(1, 0, 0)


def merged(
    sizes: Sequence[int], x_strides: Sequence[int], y_strides: Sequence[int]
) -> tuple[Dimension, ...]:
    """Returns the fewest dimensions of a copy, in the order of what is written.

    Raises ValueError for what cannot be copied: too many dimensions, none of a size, steps back,
    elements written twice for sure.
    """
    if not len(sizes) == len(x_strides) == len(y_strides):
        raise ValueError(f"sizes {sizes}, strides {x_strides}, {y_strides}: not as many")
    if any(size < 1 for size in sizes):
        raise ValueError(f"sizes {sizes}: must be at least 1")
    given = [Dimension(*one) for one in zip(sizes, x_strides, y_strides, strict=True)]
    used = [one for one in given if one.size > 1]
    if any(one.x < 0 or one.y < 1 for one in used):
        raise ValueError(f"strides {x_strides}, {y_strides}: must lead forwards")
    outer: list[Dimension] = []
    for one in sorted(used, key=lambda one: (-one.y, -one.x)):
        if outer and outer[-1].holds(one):
            one = Dimension(outer.pop().size * one.size, one.x, one.y)
        outer.append(one)
    if len(outer) > MOST_DIMENSIONS:
        raise ValueError(f"sizes {sizes}: more than {MOST_DIMENSIONS} dimensions")
    return tuple(outer)


@dataclass(frozen=True)
class Layout:
    """A copy as a kernel does it: planes, whose dimensions are the last two, in four others.

    ``kind`` is "rows" where the last dimension lies together in what is read and written, "tiles"
    where it does in what is written only and the one before in what is read only; such planes are
    "zip", where what is written are few elements of each row side by side, and "unzip", where those
    that are read are. Of "elements" neither is known.
    """

    kind: str
    dimensions: tuple[Dimension, ...]

    @property
    def plane(self) -> tuple[Dimension, Dimension]:
        return self.dimensions[-2], self.dimensions[-1]

    @classmethod
    def of(cls, dimensions: Sequence[Dimension], zipped: int) -> Layout:
        """Returns how merged dimensions are copied; up to so many elements are zipped."""
        rest = list(dimensions)
        together = [one for one in rest if one.x == one.y == 1]
        written = [one for one in rest if one.y == 1]
        read = sorted((one for one in rest if one.x == 1), key=lambda one: one.size)
        if together or not rest:
            kind, plane = "rows", together[:1]
        elif written and read:
            kind = _kind_of_plane(read[-1], written[0], zipped)
            plane = [read[-1], written[0]]
        else:
            kind, plane = "elements", []
        for one in plane:
            rest.remove(one)
        while len(plane) < 2:
            plane.insert(0, rest.pop() if rest else SINGLE)
        fill = [SINGLE] * (MOST_DIMENSIONS - 2 - len(rest))
        return cls(kind, (*fill, *rest, *plane))


def _kind_of_plane(along: Dimension, across: Dimension, zipped: int) -> str:
    if across.size <= zipped and along.y == across.size:
        return "zip"
    if along.size <= zipped and across.x == along.size:
        return "unzip"
    return "tiles"


def naive_copy(
    x: NDArray[Any],
    y: NDArray[Any],
    sizes: Sequence[int],
    x_strides: Sequence[int],
    y_strides: Sequence[int],
) -> None:
    """Copies elements of one flat array into another."""
    places = np.indices(sizes).reshape(len(sizes), -1)
    y[np.asarray(y_strides) @ places] = x[np.asarray(x_strides) @ places]
