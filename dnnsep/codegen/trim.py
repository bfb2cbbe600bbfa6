"""Leaves out taps at a kernel's border that meet the image at no output pixel.

Of a 3x3 kernel dilated by 36 on 14x14 pixels just the centre is left: a 1x1 convolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dnnsep.dtypes import Array
from dnnsep.problem import Problem
from dnnsep.weights import Weights


@dataclass(frozen=True)
class Kept:
    """The taps of a kernel that are kept: rows [``top``, ``bottom``), columns [``left``,
    ``right``)."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, weights: Weights) -> Weights:
        """Returns the weights of these taps: of the stage that has more than one."""
        if weights.depthwise is not None:
            return replace(weights, depthwise=self._of(weights.depthwise))
        assert weights.pointwise is not None
        return replace(weights, pointwise=self._of(weights.pointwise))

    def _of(self, filters: Array) -> Array:
        return filters[:, :, self.top : self.bottom, self.left : self.right]


def trimmed(problem: Problem) -> tuple[Problem, Kept | None]:
    """Returns a problem with the same outputs whose kernel has no more taps than it needs, and
    which of the taps those are; the problem itself and None where it needs all."""
    if problem.kind not in ("separable", "convolution", "depthwise"):
        return problem, None
    sizes, outputs = (problem.height, problem.width), (problem.out_height, problem.out_width)
    kept: list[int] = []
    padding: list[int] = []
    for axis in range(2):
        before, after = problem.padding[2 * axis : 2 * axis + 2]
        kernel, stride, dilation = (
            field[axis] for field in (problem.kernel, problem.stride, problem.dilation)
        )
        met = [
            tap
            for tap in range(kernel)
            if _meets(before - tap * dilation, sizes[axis], stride, outputs[axis])
        ]
        first, stop = (met[0], met[-1] + 1) if met else (0, kernel)
        first = min(first, before // dilation)  # no problem has less than no padding there
        kept += [first, stop]
        padding += [before - first * dilation, after - (kernel - stop) * dilation]
    top, bottom, left, right = kept
    if (bottom - top, right - left) == problem.kernel:
        return problem, None
    smaller = replace(
        problem,
        kernel=(bottom - top, right - left),
        padding=(padding[0], padding[1], padding[2], padding[3]),
        dilation=(
            problem.dilation[0] if bottom - top > 1 else 1,
            problem.dilation[1] if right - left > 1 else 1,
        ),
    )
    return smaller, Kept(*kept)


def _meets(before: int, size: int, stride: int, outputs: int) -> bool:
    """Returns whether a tap that starts so many pixels before an axis of a size is in it for any of
    so many outputs."""
    first = max(0, -(-before // stride))  # the first output for which it is not before the axis
    return first < outputs and first * stride - before < size
