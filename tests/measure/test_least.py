"""The least work of a problem, against counting it tap by tap."""

from __future__ import annotations

import numpy as np
import pytest

from dnnsep import Problem, cost
from dnnsep.dtypes import DTYPES
from dnnsep.measure.least import least_of

PROBLEMS = [
    "mb2ic3oc5ih9iw7kh3ph1",
    "mb1ic4oc8ih8kh5sh2ph2_bf16",
    "mb1ic4oc8ih7iw9kh3kw2sh3sw2ph1pw0dh1dw2cm2",
    "mb1ic4oc8ih10kh3sh2ph0oh3",
    "g1mb1ic4oc8ih8kh1sh2",
    "g1mb1ic4oc8ih1kh3ph1",
    "g4mb1ic4oc4ih7kh7ph3_nobias",
    "linear_mb3ic4oc8",
    "mean_mb2ic4ih5iw3",
]


def _counted(problem: Problem) -> tuple[int, int, int]:
    """Returns the pairs of an output pixel and a tap on the image, and how many pixels and taps
    are in one of them."""
    top, _, left, _ = problem.padding
    pairs, pixels, taps = 0, set(), set()
    for place in np.ndindex(problem.out_height, problem.out_width, *problem.kernel):
        oy, ox, ky, kx = map(int, place)
        y = oy * problem.stride[0] - top + ky * problem.dilation[0]
        x = ox * problem.stride[1] - left + kx * problem.dilation[1]
        if 0 <= y < problem.height and 0 <= x < problem.width:
            pairs += 1
            pixels.add((y, x))
            taps.add((ky, kx))
    return pairs, len(pixels), len(taps)


@pytest.mark.parametrize("descriptor", PROBLEMS)
def test_only_what_meets_the_image_counts(descriptor: str) -> None:
    problem = Problem.parse(descriptor)
    pairs, pixels, taps = _counted(problem)
    least, whole = least_of(problem), cost(problem)
    b, c, m = problem.batch, problem.in_channels, problem.mid_channels
    product = b * problem.out_height * problem.out_width * c * problem.out_channels
    if problem.kind == "separable":
        expected = (b * pairs * m, product * problem.channel_multiplier)
    elif problem.kind in ("depthwise", "mean"):
        expected = (b * pairs * m, 0)
    else:
        expected = (0, b * pairs * c * problem.out_channels)
    assert (least.depthwise_flops, least.product_flops) == pytest.approx(2 * np.array(expected))
    weights = {"separable": m, "depthwise": m, "mean": 0}.get(
        problem.kind, c * problem.out_channels
    )
    area = problem.kernel[0] * problem.kernel[1]
    unread = b * c * (problem.height * problem.width - pixels) + weights * (area - taps)
    moved = whole.bytes_fused - DTYPES[problem.dtype].bytes * unread
    assert least.moved_bytes == pytest.approx(moved)
