"""Problems that oneDNN gets wrong or never finishes, found by this project's own tests.

Seen alike with oneDNN 3.7.1, 3.7.2 and 3.12.0, the hang in OpenVINO 2026.4 too, on AVX-512 CPUs.
A backend that would run into one refuses the problem.
"""

from __future__ import annotations

from dnnsep.backends.base import Verdict
from dnnsep.problem import Problem

_UNWRITTEN = Verdict(
    False,
    "oneDNN leaves outputs unwritten where a convolution that is not depthwise (one channel, or a "
    "channel multiplier over 1) strides over 1 along a width that comes out as 1",
)
_HANGS = Verdict(
    False,
    "oneDNN hangs on a bf16 depthwise convolution of at most 16 channels with a kernel width of "
    "15 or more, stride 1 and an output width of 31 or more",
)
_NONE = Verdict(True, "no known fault")


def depthwise_verdict(problem: Problem) -> Verdict:
    """For a depthwise convolution over mid_channels, each a group of its own."""
    if problem.mid_channels == 1:  # one group: an ordinary convolution
        return _UNWRITTEN if _strides_to_one_column(problem) else _NONE
    # 17 channels, a kernel width of 14, a stride of 2 or an output width of 30 do not hang.
    hangs = (
        problem.dtype == "bf16"
        and problem.mid_channels <= 16
        and problem.kernel[1] >= 15
        and problem.stride[1] == 1
        and problem.out_width >= 31
    )
    return _HANGS if hangs else _NONE


def grouped_verdict(problem: Problem) -> Verdict:
    """For a convolution of in_channels groups with channel_multiplier outputs each."""
    if problem.channel_multiplier == 1:
        return depthwise_verdict(problem)
    affected = problem.dtype == "bf16" or problem.in_channels == 1
    return _UNWRITTEN if affected and _strides_to_one_column(problem) else _NONE


def _strides_to_one_column(problem: Problem) -> bool:
    return problem.out_width == 1 and problem.stride[1] > 1
