"""The oracle: the depthwise loop nest in NumPy with float64 accumulation, and how far a correct
backend may be from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dnnsep.backends.base import Verdict
from dnnsep.problem import Problem
from dnnsep.single import Dense, Depthwise
from dnnsep.weights import Array, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

Exact = NDArray[np.float64]

# Unit roundoff: half the distance from 1 to the next value.
UNIT_ROUNDOFF = {"f32": 2.0**-24, "bf16": 2.0**-8}

# No activation here stretches a difference by more than this (hardswish reaches 1.5 at x = 3).
_LIPSCHITZ = {"none": 1.0, "relu": 1.0, "relu6": 1.0, "silu": 1.1, "hardswish": 1.5, "gelu": 1.13}
_LIPSCHITZ |= {"sigmoid": 0.25, "hardsigmoid": 1 / 6}

# oneDNN evaluates exp, erf and tanh by polynomials. The error that they and torch's own vector
# forms may add, absolute, in units of the f32 roundoff times (1 + |x|).
_APPROXIMATION = {"none": 0, "relu": 0, "relu6": 0, "silu": 16, "hardswish": 4, "gelu": 16}
_APPROXIMATION |= {"sigmoid": 16, "hardsigmoid": 4}


@dataclass(frozen=True)
class ReferenceBackend:
    """Runs a problem by the definition, slowly."""

    name: str = "reference"

    def available(self) -> Verdict:
        return Verdict(True, "NumPy")

    def supports(self, problem: Problem) -> Verdict:
        return Verdict(True, "runs everything, slowly")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        weights.check(problem)
        from dnnsep.backends.executor import Executor, Stage
        from dnnsep.backends.tensors import to_channels_last

        def run(x: Tensor) -> Tensor:
            y = separable(problem, weights, x.float().numpy())
            return to_channels_last(y.astype(np.float32), problem.dtype)

        return Executor(self.name, problem, [Stage("separable", run)])


def separable(problem: Problem, weights: Weights, x: Array) -> Exact:
    """The layer's output (N, OC, OH, OW) in float64 for x: (N, C, H, W). Nothing is rounded."""
    dw_act, pw_act = problem.activations
    if isinstance(problem, Dense):
        mid = _patches(problem, x)
    else:
        mid = _activate(_depthwise(problem, weights.depthwise, weights.depthwise_bias, x), dw_act)
    if isinstance(problem, Depthwise):
        return mid
    return _activate(_pointwise(weights.pointwise, weights.pointwise_bias, mid), pw_act)


def error_bound(problem: Problem, weights: Weights, x: Array) -> Exact:
    """How far each output of a correct backend may be from ``separable``: (N, OC, OH, OW).

    The running error bound of a sum of products (Higham, Accuracy and Stability of Numerical
    Algorithms, chapter 3): n terms accumulated in f32 in any order are off by at most
    n·u/(1 - n·u) times the sum of the absolute products, and each store in the problem's dtype
    adds one roundoff of that dtype. Both stages' sums over absolute values give the scale.
    """
    u32, store = UNIT_ROUNDOFF["f32"], UNIT_ROUNDOFF[problem.dtype]
    dw_act, pw_act = problem.activations
    absolute = Weights(
        *(None if w is None else np.abs(w) for w in vars(weights).values())  # type: ignore[arg-type]
    )
    if isinstance(problem, Dense):
        mid_scale = _patches(problem, np.abs(x))
        mid_error = np.zeros_like(mid_scale)
    else:
        mid_scale = _depthwise(problem, absolute.depthwise, absolute.depthwise_bias, np.abs(x))
        mid_error = mid_scale * (_gamma(prod(problem.kernel) + 1, u32) * _LIPSCHITZ[dw_act])
        mid_error += _APPROXIMATION[dw_act] * u32 * (1 + mid_scale)
        # An activation applied apart from the convolution rounds once more.
        mid_error += (1.0 if dw_act == "none" else 2.5) * store * mid_scale
    if isinstance(problem, Depthwise):
        return mid_error
    out_scale = _pointwise(absolute.pointwise, absolute.pointwise_bias, mid_scale)
    out_error = _pointwise(absolute.pointwise, None, mid_error)
    out_error += _gamma(problem.mid_channels + 1, u32) * out_scale
    out_error *= _LIPSCHITZ[pw_act]
    out_error += _APPROXIMATION[pw_act] * u32 * (1 + out_scale)
    out_error += (1.0 if pw_act == "none" else 2.5) * store * out_scale
    return out_error


def _taps(problem: Problem, x: Array) -> Iterator[tuple[int, int, Exact]]:
    """Each tap (i, j) of the kernel with what it meets at every output pixel: (N, C, OH, OW)."""
    (top, bottom, left, right), (sh, sw), (dh, dw) = (
        problem.padding,
        problem.stride,
        problem.dilation,
    )
    _, _, oh, ow = problem.mid_shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    for i in range(problem.kernel[0]):
        for j in range(problem.kernel[1]):
            rows = slice(i * dh, i * dh + sh * (oh - 1) + 1, sh)
            columns = slice(j * dw, j * dw + sw * (ow - 1) + 1, sw)
            yield i, j, padded[:, :, rows, columns]


def _patches(problem: Dense, x: Array) -> Exact:
    """The inputs under the kernel, in the order of its taps and then the channels."""
    return np.concatenate([met for _, _, met in _taps(problem, x)], axis=1)


def _depthwise(problem: Problem, weight: Array, bias: Array | None, x: Array) -> Exact:
    """Each channel is convolved with its own m filters; no sum crosses channels."""
    y = np.zeros(problem.mid_shape)
    for i, j, met in _taps(problem, x):
        # Output channel c·m + k reads input channel c.
        repeated = np.repeat(met, problem.channel_multiplier, axis=1)
        y += repeated * weight[:, 0, i, j].astype(np.float64)[:, None, None]
    return y if bias is None else y + bias.astype(np.float64)[:, None, None]


def _pointwise(weight: Array, bias: Array | None, x: Exact) -> Exact:
    """Every output channel is a weighted sum of all input channels of the same pixel."""
    batch, mid, oh, ow = x.shape
    matrix = weight.reshape(-1, mid).astype(np.float64)
    y = (matrix @ x.reshape(batch, mid, oh * ow)).reshape(batch, -1, oh, ow)
    return y if bias is None else y + bias.astype(np.float64)[:, None, None]


def _activate(x: Exact, activation: str) -> Exact:
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "relu6":
        return np.clip(x, 0, 6)
    if activation == "silu":
        return x * _sigmoid(x)
    if activation == "hardswish":
        return x * np.clip(x + 3, 0, 6) / 6
    if activation == "gelu":
        return 0.5 * x * (1 + _erf(x / np.sqrt(2)))
    if activation == "sigmoid":
        return _sigmoid(x)
    if activation == "hardsigmoid":
        return np.clip(x + 3, 0, 6) / 6
    return x


def _sigmoid(x: Exact) -> Exact:
    # tanh does not overflow where exp would.
    return 0.5 * (1 + np.tanh(0.5 * x))


def _erf(x: Exact) -> Exact:
    from scipy.special import erf

    return erf(x)


def _gamma(terms: int, roundoff: float) -> float:
    return terms * roundoff / (1 - terms * roundoff)
