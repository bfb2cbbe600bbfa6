"""Counts the least that any engine must do for a problem, which a roof has to allow for.

FLOP/s are counted by the layer's formula (cost.py), which takes every tap of a kernel as work and
every element of a tensor as moved. An engine may leave out taps on the padding, and what no output
needs: the pixels that a stride passes over, the weights that only ever meet padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from dnnsep.cost import cost
from dnnsep.descriptor import out_size
from dnnsep.problem import Problem


@dataclass(frozen=True)
class Least:
    """The FLOPs of the product over channels and of the depthwise stage, and the bytes moved."""

    product_flops: float
    depthwise_flops: float
    moved_bytes: float


@dataclass(frozen=True)
class _Axis:
    """Along one axis of the image, as shares from 0 to 1: pairs of an output and a tap that meet
    the image, pixels that are read, and taps that ever meet the image."""

    pairs: float
    pixels: float
    taps: float


def least_of(problem: Problem) -> Least:
    """Returns the least that a problem takes.

    The kernel's taps belong to the depthwise stage, or to an ordinary convolution's product.
    """
    counted = cost(problem)
    axes = _axes(problem)
    pairs, pixels, taps = (
        prod(getattr(axis, name) for axis in axes) for name in ("pairs", "pixels", "taps")
    )
    product, depthwise = 2.0 * counted.pointwise_macs, 2.0 * counted.depthwise_macs
    windowed = problem.depthwise_shape or problem.pointwise_shape
    weights = prod(windowed) if windowed else 0
    unread = (1 - pixels) * prod(problem.input_shape) + (1 - taps) * weights
    return Least(
        product_flops=product * (pairs if problem.kind == "convolution" else 1),
        depthwise_flops=depthwise * pairs,
        moved_bytes=counted.bytes_fused - unread * problem.precision.source.bytes,
    )


def _axes(problem: Problem) -> tuple[_Axis, _Axis]:
    top, bottom, left, right = problem.padding
    sides = ((problem.height, top, bottom), (problem.width, left, right))
    windows = zip(problem.kernel, problem.stride, problem.dilation, strict=True)
    height, width = (
        _axis(size, (before, after), *window)
        for (size, before, after), window in zip(sides, windows, strict=True)
    )
    return height, width


def _axis(size: int, padding: tuple[int, int], kernel: int, stride: int, dilation: int) -> _Axis:
    outputs = out_size(size, padding, kernel, stride, dilation)
    read = np.zeros(size, bool)
    pairs = taps = 0
    for tap in range(kernel):
        at = tap * dilation - padding[0]  # the pixel under this tap of the first output
        first = max(0, -(at // stride))
        last = min(outputs - 1, (size - 1 - at) // stride)
        if last >= first:
            pairs, taps = pairs + last - first + 1, taps + 1
            read[first * stride + at : last * stride + at + 1 : stride] = True
    return _Axis(pairs / (outputs * kernel), float(read.mean()), taps / kernel)
