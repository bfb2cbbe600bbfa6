"""Windows of convolutions, and the one that contains several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

from torch import fx

from dnnsep.graph.rewrite import shape_of

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The pixels that a convolution reads for one output pixel: how many in each dimension, how
    far before the output pixel's place the first one is, and how far they are apart (h, w)."""

    size: Pair
    before: Pair
    dilation: Pair

    @classmethod
    def of(cls, node: fx.Node) -> Window:
        """Returns the window of a convolution."""
        weight: Any = node.args[1]
        padding, dilation = node.args[4:6]
        (top, _, left, _), (dh, dw) = cast(list[int], padding), cast(list[int], dilation)
        kh, kw = shape_of(weight)[2:]
        return cls((kh, kw), (top, left), (dh if kh > 1 else 1, dw if kw > 1 else 1))

    @property
    def pixels(self) -> int:
        """How many pixels the window has."""
        return prod(self.size)

    def sides_in(self, other: Window) -> list[int]:
        """Returns how many pixels another window has around this one, in its own steps, as
        (left, right, top, bottom)."""
        sides = []
        for dim in (1, 0):
            first = (other.before[dim] - self.before[dim]) // other.dilation[dim]
            sides += [first, other.size[dim] - first - self.size[dim]]
        return sides

    def padding(
        self, image: Sequence[int], output: Sequence[int], stride: Sequence[int]
    ) -> list[int]:
        """Returns the padding (top, bottom, left, right) with which a convolution with this window
        makes an output of a size (h, w) of an image."""
        sides = []
        for dim, before in enumerate(self.before):
            reach = (output[dim] - 1) * stride[dim] + self.dilation[dim] * (self.size[dim] - 1) + 1
            least = reach - image[dim] - before
            # As much as before, if the last step that does not fit allows it.
            after = before if least <= before < least + stride[dim] else least
            sides += [before, after]
        return sides


def common_window(windows: Sequence[Window]) -> Window | None:
    """Returns the smallest window that contains all of some; None if their pixels do not lie on one
    grid."""
    size, before, dilation = [], [], []
    for dim in (0, 1):
        steps = {w.dilation[dim] for w in windows if w.size[dim] > 1} or {1}
        step, first = max(steps), max(w.before[dim] for w in windows)
        distances = [first - w.before[dim] for w in windows]
        if len(steps) > 1 or any(distance % step for distance in distances):
            return None
        ends = [d // step + w.size[dim] for d, w in zip(distances, windows, strict=True)]
        size.append(max(ends))
        before.append(first)
        dilation.append(step)
    return Window((size[0], size[1]), (before[0], before[1]), (dilation[0], dilation[1]))
