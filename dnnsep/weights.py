"""Weights and inputs of a problem: random ones, and small integers that make checks exact.

Arrays are float32 in NumPy whatever the problem's dtype; for bf16 every value is rounded to bf16
beforehand, so that a conversion later is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from dnnsep.problem import Problem

Array = NDArray[np.float32]

# A depthwise sum of at most 60 products of integers up to 2 x 2, plus a bias up to 4, stays within
# 256, so it is exact in bf16 (8 significant bits); a pointwise sum of at most 16384 such values
# times 2 stays below 2**24, so it is exact in float32.
_MAX_TAPS = 60
_MAX_TERMS = 16384


@dataclass(frozen=True, eq=False)
class Weights:
    """A problem's parameters.

    ``depthwise`` is (C·m, 1, kh, kw), torch's shape of the 5-D grouped weights (groups=C, m, 1,
    kh, kw); ``pointwise`` is (OC, C·m, 1, 1); the biases are (C·m,) and (OC,), or None.
    """

    depthwise: Array
    depthwise_bias: Array | None
    pointwise: Array
    pointwise_bias: Array | None

    def check(self, problem: Problem) -> None:
        """Raises ValueError naming the array that does not fit the problem."""
        depthwise, pointwise = problem.depthwise_shape, problem.pointwise_shape
        shapes = {
            "depthwise": depthwise,
            "depthwise_bias": depthwise[:1] if problem.bias else None,
            "pointwise": pointwise,
            "pointwise_bias": pointwise[:1] if problem.bias else None,
        }
        for name, expected in shapes.items():
            array = getattr(self, name)
            found = None if array is None else array.shape
            if found != expected:
                raise ValueError(f"{name}: shape {found}, the problem has {expected}")


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """An inference-time batch normalisation: scale·(x - mean)/sqrt(variance + eps) + shift.

    All arrays are (channels,).
    """

    scale: Array
    shift: Array
    mean: Array
    variance: Array
    eps: float = 1e-5


def fold_batchnorm(
    weights: Weights,
    after_depthwise: BatchNorm | None = None,
    after_pointwise: BatchNorm | None = None,
) -> Weights:
    """Weights of the same layer with the normalisations folded in; both stages then have a bias.

    The activations stay where they were, after the normalisations: MobileNet's depthwise -> BN ->
    ReLU -> pointwise -> BN -> ReLU is a problem with bias and activations (relu, relu).
    """
    depthwise, depthwise_bias = _fold(weights.depthwise, weights.depthwise_bias, after_depthwise)
    pointwise, pointwise_bias = _fold(weights.pointwise, weights.pointwise_bias, after_pointwise)
    return Weights(depthwise, depthwise_bias, pointwise, pointwise_bias)


def _fold(weight: Array, bias: Array | None, norm: BatchNorm | None) -> tuple[Array, Array]:
    start = np.zeros(len(weight), np.float32) if bias is None else bias
    if norm is None:
        return weight, start
    factor = norm.scale / np.sqrt(norm.variance.astype(np.float64) + norm.eps)
    folded = weight * factor[:, None, None, None]
    return folded.astype(np.float32), (norm.shift + (start - norm.mean) * factor).astype(np.float32)


def round_to_dtype(values: NDArray[np.floating], dtype: str) -> Array:
    """Round to the nearest value of ``dtype`` (ties to even), returned as float32."""
    single = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == "f32":
        return single
    bits = single.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(single), rounded.astype(np.uint32).view(np.float32), single)


def random_data(problem: Problem, seed: int = 0) -> tuple[Weights, Array]:
    """Normally distributed weights and input (N, C, H, W), scaled so that outputs are near 1."""
    rng = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...], fan_in: int) -> Array:
        values = rng.standard_normal(shape, dtype=np.float32) / np.float32(max(fan_in, 1)) ** 0.5
        return round_to_dtype(values, problem.dtype)

    return _fill(problem, normal), normal(problem.input_shape, 1)


def integer_data(problem: Problem, seed: int = 0) -> tuple[Weights, Array]:
    """Small integers, for which every partial sum is exact in f32 and the intermediate in bf16.

    With activations none, relu or relu6 a correct backend agrees with the reference to the bit.
    """
    rng = np.random.default_rng(seed)

    def integers(shape: tuple[int, ...], fan_in: int) -> Array:
        if fan_in == 0:
            return rng.integers(-4, 5, shape).astype(np.float32)
        values = rng.integers(-2, 3, shape).astype(np.float32)
        limit = _MAX_TAPS if shape[-2:] != (1, 1) else _MAX_TERMS
        if fan_in > limit:
            keep = rng.permuted(np.arange(fan_in) < limit * np.ones((shape[0], 1)), axis=1)
            values *= keep.reshape(shape)
        return values

    x = rng.integers(-2, 3, problem.input_shape).astype(np.float32)
    return _fill(problem, integers), x


def _fill(problem: Problem, draw: Callable[[tuple[int, ...], int], Array]) -> Weights:
    """Draw each array as draw(shape, fan_in); a fan_in of 0 asks for a bias."""
    depthwise, pointwise = problem.depthwise_shape, problem.pointwise_shape
    return Weights(
        depthwise=draw(depthwise, prod(problem.kernel)),
        depthwise_bias=draw(depthwise[:1], 0) if problem.bias else None,
        pointwise=draw(pointwise, problem.mid_channels),
        pointwise_bias=draw(pointwise[:1], 0) if problem.bias else None,
    )
