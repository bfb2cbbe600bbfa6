"""What is right: the naive answer of a layer that takes a residual or a scale, and its bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dnnsep.activations import ACTIVATIONS, Exact
from dnnsep.codegen.layer import stages_of
from dnnsep.codegen.stages.base import Stage, bound_of_sum
from dnnsep.codegen.stages.depthwise import Depthwise
from dnnsep.codegen.stages.matmul import Matmul
from dnnsep.dtypes import DTYPES, F32, Array
from dnnsep.problem import Problem
from dnnsep.weights import Weights


def answer(
    problem: Problem,
    weights: Weights,
    x: Array,
    residual: Array | None = None,
    scale: Array | None = None,
    after: bool = False,
) -> tuple[Exact, Exact]:
    """Returns the layer's output (N, OC, OH, OW) in float64 and how far a right one may be off.

    ``residual`` is (N, OC, OH, OW), and added ``after`` the activation or before it; ``scale`` is
    (N, C, 1, 1), and a scaled input is rounded to the problem's dtype.
    """
    if scale is not None:
        x = DTYPES[problem.dtype].rounded(x * scale)
    *first, last = stages_of(problem)
    y: Exact = x.astype(np.float64)
    size, error = np.abs(y), np.zeros_like(y)
    for stage in first:
        size, error = stage.bound(size, error, weights.absolute())
        y = stage.naive(y, weights)
    if residual is None:
        return last.naive(y, weights), last.bound(size, error, weights.absolute())[1]
    return with_residual(last, weights, (y, size, error), residual, after)


def with_residual(
    stage: Stage,
    weights: Weights,
    given: tuple[Exact, Exact, Exact],
    residual: Array,
    after: bool = False,
) -> tuple[Exact, Exact]:
    """Returns what a stage with a residual gives, and how far a right result may be off.

    ``given`` is its input, how large that may be, and how far off.
    """
    assert isinstance(stage, Matmul | Depthwise)
    y, size, error = given
    if weights.quantization is not None:
        assert isinstance(stage, Matmul)
        how = stage.requantization(weights)
        right = how.naive(stage.sums(y, weights), stage.activation, residual.astype(np.float64))
        return right, stage.bound(size, error, weights.absolute())[1]
    dtype, absolute = DTYPES[stage.dtype], weights.absolute()
    if after:
        largest, off = stage.bound(size, error, absolute)
        rounded = (dtype.roundoff + F32.roundoff) * (largest + np.abs(residual))
        return stage.naive(y, weights) + residual, off + rounded
    sums = replace(stage, activation="none")
    largest = sums.naive(size, absolute) + np.abs(residual)
    without_bias = replace(absolute, depthwise_bias=None, pointwise_bias=None)
    terms = stage.channels if isinstance(stage, Matmul) else stage.window.taps
    _, bound = bound_of_sum(
        largest, sums.naive(error, without_bias), terms + 1, stage.activation, stage.dtype
    )
    return ACTIVATIONS[stage.activation].naive(sums.naive(y, weights) + residual), bound
