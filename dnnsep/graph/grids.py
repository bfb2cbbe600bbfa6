"""How the sizes of a network's values follow from the size of its input."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from dnnsep.codegen.stages.base import Window
from dnnsep.codegen.windows.pooling import Pooling
from dnnsep.problem import Pair


@dataclass(frozen=True)
class Grid:
    """The pixels of some images: how many images, and their height and width."""

    images: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.images * self.height * self.width


class Grids:
    """Numbered grids, each of which follows from one before it; number 0 is the input's, 1 has a
    pixel for each of its images. Equal rules of one grid are the same grid, so that two values with
    the same number are of one size whatever the input's is."""

    INPUT, IMAGES = 0, 1

    def __init__(self) -> None:
        self._rules: list[tuple[int, Pair, Pair] | tuple[int, Pooling]] = []
        self._numbers: dict[Hashable, int] = {}

    def under_window(self, grid: int, window: Window) -> int:
        """Returns the number of what a window gives of a grid."""
        top, bottom, left, right = window.padding
        room_h, room_w = (
            before + after - step * (taps - 1) - 1
            for before, after, step, taps in zip(
                (top, left), (bottom, right), window.dilation, window.kernel, strict=True
            )
        )
        if window.stride == (1, 1) and (room_h, room_w) == (-1, -1):
            return grid
        return self._number((grid, (room_h, room_w), window.stride))

    def pooled(self, grid: int, pooling: Pooling) -> int:
        """Returns the number of what a pooling gives of a grid."""
        if pooling.ceil_mode:
            return self._number((grid, pooling))
        ph, pw = pooling.padding
        window = Window(pooling.kernel, pooling.stride, (ph, ph, pw, pw), pooling.dilation)
        return self.under_window(grid, window)

    def _number(self, rule: tuple[int, Pair, Pair] | tuple[int, Pooling]) -> int:
        if rule not in self._numbers:
            self._numbers[rule] = len(self._rules) + 2
            self._rules.append(rule)
        return self._numbers[rule]

    def of(self, images: int, height: int, width: int) -> Sequence[Grid]:
        """Returns the grids for an input's size, by number. Raises ValueError where one has no
        pixels."""
        grids = [Grid(images, height, width), Grid(images, 1, 1)]
        for rule in self._rules:
            before = grids[rule[0]]
            if len(rule) == 2:
                high, wide = rule[1].output_size(before.height, before.width)
            else:
                _, rooms, strides = rule
                high, wide = (
                    (size + room) // stride + 1
                    for size, room, stride in zip(
                        (before.height, before.width), rooms, strides, strict=True
                    )
                )
            if min(high, wide) < 1:
                raise ValueError(f"images of {height}x{width} pixels: too small")
            grids.append(Grid(images, high, wide))
        return grids
