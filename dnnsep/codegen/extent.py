"""The sizes of a layer's input: what one kernel has built in and another could read at run time."""

from __future__ import annotations

from dataclasses import dataclass

from dnnsep.codegen.stages.base import Window
from dnnsep.problem import Problem


@dataclass(frozen=True)
class Extent:
    """The sizes of an input: images of a batch, and their height and width in pixels."""

    batch: int
    height: int
    width: int

    @classmethod
    def of(cls, problem: Problem) -> Extent:
        """Returns the sizes of a problem's input; a linear layer's rows are pixels of one row."""
        if problem.kind == "linear":
            return cls(1, 1, problem.batch)
        return cls(problem.batch, problem.height, problem.width)

    @property
    def pixels(self) -> int:
        """Returns the pixels of all images."""
        return self.batch * self.height * self.width

    def out_size(self, window: Window) -> tuple[int, int]:
        """Returns the height and width of what a window gives of an image."""
        top, bottom, left, right = window.padding
        high, wide = (
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(
                (self.height + top + bottom, self.width + left + right),
                window.kernel,
                window.stride,
                window.dilation,
                strict=True,
            )
        )
        return high, wide

    def inner_columns(self, window: Window, out_width: int) -> tuple[int, int]:
        """Returns the first column of an output so wide where the whole width of a window's kernel
        meets an image, and the one after the last; none where that is not after the first."""
        (_, kw), (_, stride), (_, step) = window.kernel, window.stride, window.dilation
        left = window.padding[2]
        first = max(0, -(-left // stride))
        end = (self.width - (kw - 1) * step - 1 + left) // stride + 1
        return first, min(end, out_width)


def output_rows(problem: Problem) -> tuple[int, int]:
    """Returns how many rows of pixels a problem's output has in all images, and how long they
    are; of a linear layer it is a single one."""
    if problem.kind == "linear":
        return 1, problem.batch
    return problem.batch * problem.out_height, problem.out_width
