"""What is right: the naive answer of a layer that takes a residual or a scale too, and its bound.

A residual is as many channels more that the product sums up, with the identity as their weights; so
the naive form of the product and its bound say what is right of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dnnsep.activations import Exact
from dnnsep.codegen.layer import stages_of
from dnnsep.codegen.stages.base import Stage
from dnnsep.codegen.stages.matmul import Matmul
from dnnsep.dtypes import DTYPES, Array
from dnnsep.problem import Problem
from dnnsep.weights import Weights


def answer(
    problem: Problem,
    weights: Weights,
    x: Array,
    residual: Array | None = None,
    scale: Array | None = None,
) -> tuple[Exact, Exact]:
    """Returns the layer's output (N, OC, OH, OW) in float64 and how far a right one may be off.

    ``residual`` is (N, OC, OH, OW), ``scale`` (N, C, 1, 1); a scaled input is rounded to the
    problem's dtype.
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
    widened, wider = with_residual(last, weights)
    y = np.concatenate([y, residual], axis=1)
    size = np.concatenate([size, np.abs(residual)], axis=1)
    error = np.concatenate([error, np.zeros_like(residual)], axis=1)
    return widened.naive(y, wider), widened.bound(size, error, wider.absolute())[1]


def with_residual(stage: Stage, weights: Weights) -> tuple[Stage, Weights]:
    """Returns a product, and its weights, of the input's channels followed by the residual's."""
    assert isinstance(stage, Matmul)
    out = stage.out_channels
    matrix = np.concatenate([stage.matrix(weights), np.eye(out, dtype=np.float32)], axis=1)
    wider = Weights(pointwise=matrix[:, :, None, None], pointwise_bias=weights.pointwise_bias)
    return replace(stage, channels=stage.channels + out), wider
