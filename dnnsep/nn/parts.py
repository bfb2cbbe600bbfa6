"""What the fused kernel runs of convolutions and linear layers.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dnnsep.backends.fused import FusedBackend
from dnnsep.backends.fused_chain import Step
from dnnsep.backends.fused_executor import FusedExecutor
from dnnsep.nn.convolution import pair
from dnnsep.nn.layer import DTYPES, Geometry, array
from dnnsep.problem import Problem
from dnnsep.single import Dense, Depthwise, Mean
from dnnsep.weights import Weights

_NONE = np.empty(0, np.float32)


class Part(NamedTuple):
    """What the fused kernel runs."""

    problem: Problem
    weights: Weights


def dense_parts(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, pooled: bool
) -> list[Part] | None:
    """A convolution's, (OC, C, kh, kw) weights, for inputs like x: (N, C, H, W), or for their mean
    over all pixels; None where they do not fit."""
    if x.shape[1] != weight.shape[1]:
        return None
    means = []
    if pooled and x.shape[2:] != (1, 1):
        batch, channels, height, width = x.shape
        mean = Mean.over(batch, channels, height, width, DTYPES[x.dtype])
        means.append(Part(mean, Weights(_NONE, None, _NONE, None)))
        x = x[:, :, :1, :1]
    rows = array(weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1))
    none = np.empty((0, 1, *weight.shape[2:]), np.float32)
    biases = (None, None) if bias is None else (np.empty(0, np.float32), array(bias))
    try:
        problem = Dense(**_sizes(x, weight, geometry), bias=bias is not None)
    except ValueError:  # padded beyond the kernel's reach
        return None
    if not FusedBackend().supports(problem):
        return None
    return [*means, Part(problem, Weights(none, biases[0], rows, biases[1]))]


def depthwise_parts(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> list[Part] | None:
    """A depthwise convolution's, (C, 1, kh, kw) weights, for inputs like x: (N, C, H, W)."""
    try:
        problem = Depthwise(**_sizes(x, weight, geometry), bias=bias is not None)
    except ValueError:  # padded beyond the kernel's reach, or another activation
        return None
    if not FusedBackend().supports(problem):
        return None
    none = np.empty(problem.pointwise_shape, np.float32)
    biases = (None, None) if bias is None else (array(bias), np.empty(0, np.float32))
    return [Part(problem, Weights(array(weight), biases[0], none, biases[1]))]


def _sizes(x: Tensor, weight: Tensor, geometry: Geometry) -> dict[str, Any]:
    return {
        "batch": x.shape[0],
        "in_channels": x.shape[1],
        "out_channels": weight.shape[0],
        "height": x.shape[2],
        "width": x.shape[3],
        "kernel": pair(tuple(weight.shape[2:])),
        **geometry._asdict(),
        "dtype": DTYPES[x.dtype],
    }


def chained(
    parts: list[Part], first: int, x: int, residual: int | None = None, scale: int | None = None
) -> list[Step]:
    """Steps, numbered from ``first``, that run parts one after the other: the first one on ``x``
    and with the scale, the last one with the residual."""
    last = len(parts) - 1
    return [
        Step(
            FusedExecutor.chosen(*part),
            first + number - 1 if number else x,
            residual if number == last else None,
            None if number else scale,
        )
        for number, part in enumerate(parts)
    ]
