"""Problems that oneDNN gets wrong, never finishes or dies of, found by this project's own tests.

Seen alike with oneDNN 3.7.1, 3.7.2 and 3.12.0 on AVX-512 CPUs; what is unwritten and what hangs in
OpenVINO 2026.4 too. What is wrong on tiles was seen with oneDNN 3.7.1, IPEX 2.8 and OpenVINO 2026.4
on a CPU with AMX, what ends the process there with oneDNN 3.7.1. A backend that would run into one
refuses the problem, and pads an image itself where oneDNN would do that wrongly. Linear layers and
means are not concerned.
"""

from __future__ import annotations

from dnnsep.backends.base import Verdict
from dnnsep.host import amx
from dnnsep.problem import Problem

_UNWRITTEN = Verdict(
    False,
    "oneDNN leaves outputs unwritten where a convolution that is not depthwise (ordinary ones, one "
    "channel, a channel multiplier over 1) strides over 1 along a width that comes out as 1",
)
_HANGS = Verdict(
    False,
    "oneDNN hangs on a bf16 depthwise convolution of at most 16 channels with a kernel width of "
    "15 or more, stride 1 and an output width of 31 or more",
)
_WRONG_ON_TILES = Verdict(
    False,
    "oneDNN gives wrong results on AMX for an ordinary bf16 convolution of fewer than 16 channels "
    "with 64 or more inputs under a row of its kernel, a multiple of 32, and several output rows",
)
_ENDS_ON_TILES = Verdict(
    False,
    "oneDNN ends the process on AMX for a bf16 convolution that is not depthwise and whose kernel "
    "meets no row of the image",
)
_NONE = Verdict(True, "no known fault")

# What a row of an AMX tile holds of bf16, and the fewest channels that were seen to be right.
_TILE_ROW, _MANY_CHANNELS = 32, 16


def depthwise_verdict(problem: Problem) -> Verdict:
    """Returns whether oneDNN runs a problem whose depthwise stage, if it has one, is given to it
    as a convolution over mid_channels, each of them a group of its own."""
    if problem.kind in ("linear", "mean"):
        return _NONE
    if problem.kind == "convolution" or problem.mid_channels == 1:  # one group
        # Of several channels only kernels as wide as the image were seen to be affected.
        affected = problem.in_channels == 1 or problem.kernel[1] > 1
        if affected and _strides_to_one_column(problem):
            return _UNWRITTEN
        if _misses_on_tiles(problem):
            return _ENDS_ON_TILES
        return _WRONG_ON_TILES if _is_wrong_on_tiles(problem) else _NONE
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
    """Returns whether oneDNN runs a problem whose depthwise stage, if it has one, is given to it
    as a convolution of in_channels groups with channel_multiplier outputs each."""
    if problem.channel_multiplier == 1:
        return depthwise_verdict(problem)
    affected = problem.dtype == "bf16" or problem.in_channels == 1
    if affected and _strides_to_one_column(problem):
        return _UNWRITTEN
    return _ENDS_ON_TILES if _misses_on_tiles(problem) else _NONE


def padding_verdict(problem: Problem) -> Verdict:
    """Returns whether torch can leave a convolution's padding to oneDNN.

    Torch pads both sides of an axis alike. With the padding of a whole window oneDNN ends the
    process where a width is strided and dilated, and hangs on wide depthwise kernels. In bf16 it
    takes an image for one without padding where the last window ends exactly ``left`` before the
    image's end, and writes beyond its buffers; depthwise convolutions do not.
    """
    if problem.symmetric_padding is None:
        return Verdict(False, "torch pads both sides of an axis alike")
    if padded_by_a_window(problem):
        return Verdict(False, "oneDNN fails on a padding of a whole window or more")
    left = problem.padding[2]
    covered = (problem.out_width - 1) * problem.stride[1]
    covered += problem.dilation[1] * (problem.kernel[1] - 1) + 1
    is_depthwise = problem.kind != "convolution" and problem.channel_multiplier == 1
    is_depthwise = is_depthwise and problem.mid_channels > 1
    if problem.dtype == "bf16" and not is_depthwise and left and covered == problem.width:
        return Verdict(False, "oneDNN overlooks a padding whose two sides add up to nothing")
    return _NONE


def padded_by_a_window(problem: Problem) -> bool:
    """Returns whether a side is padded by the dilated kernel's whole reach or more."""
    (kernel_h, kernel_w), (dilation_h, dilation_w) = problem.kernel, problem.dilation
    top, bottom, left, right = problem.padding
    rows, columns = dilation_h * (kernel_h - 1), dilation_w * (kernel_w - 1)
    return max(top, bottom) > rows or max(left, right) > columns


def _strides_to_one_column(problem: Problem) -> bool:
    return problem.out_width == 1 and problem.stride[1] > 1


def _misses_on_tiles(problem: Problem) -> bool:
    """Returns whether AMX would be used for outputs of padding only: dilated taps may all pass over
    an image of few rows."""
    met = any(
        0
        <= row * problem.stride[0] + tap * problem.dilation[0] - problem.padding[0]
        < problem.height
        for row in range(problem.out_height)
        for tap in range(problem.kernel[0])
    )
    return problem.dtype == "bf16" and not met and amx.is_there()


def _is_wrong_on_tiles(problem: Problem) -> bool:
    """Returns whether AMX would be used in a way that was seen to be wrong, whatever the stride."""
    few = problem.kind == "convolution" and 1 < problem.in_channels < _MANY_CHANNELS
    row = problem.in_channels * problem.kernel[1]
    wide = row >= 2 * _TILE_ROW and row % _TILE_ROW == 0
    several = problem.out_height > 1 and problem.dilation[1] == 1
    return problem.dtype == "bf16" and few and wide and several and amx.is_there()
