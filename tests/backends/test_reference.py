"""The oracle itself is checked: against the loop nest as written down, and against TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from dnnsep.activations import ACTIVATIONS
from dnnsep.backends.reference import error_bound, naive
from dnnsep.backends.tensors import TORCH_ACTIVATIONS
from dnnsep.problem import Problem
from dnnsep.weights import Weights, random_data
from tests.strategies import problems

_GOLDEN = np.load(Path(__file__).parent.parent / "data" / "tf_separable_conv2d.npz")


def _loop_nest(problem: Problem, weights: Weights, x: np.ndarray) -> np.ndarray:
    """Channel by channel, pixel by pixel, tap by tap."""
    (top, _, left, _), m = problem.padding, problem.channel_multiplier
    assert weights.depthwise is not None
    assert weights.pointwise is not None
    mid = np.zeros(problem.mid_shape)
    for n, c, k, oh, ow in np.ndindex(
        problem.batch, problem.in_channels, m, problem.out_height, problem.out_width
    ):
        total = 0.0 if weights.depthwise_bias is None else float(weights.depthwise_bias[c * m + k])
        for i, j in np.ndindex(*problem.kernel):
            h = oh * problem.stride[0] - top + i * problem.dilation[0]
            w = ow * problem.stride[1] - left + j * problem.dilation[1]
            if 0 <= h < problem.height and 0 <= w < problem.width:
                total += float(x[n, c, h, w]) * float(weights.depthwise[c * m + k, 0, i, j])
        mid[n, c * m + k, oh, ow] = total
    y = np.einsum("nchw,oc->nohw", mid, weights.pointwise[:, :, 0, 0].astype(np.float64))
    if weights.pointwise_bias is not None:
        y = y + weights.pointwise_bias[:, None, None]
    return np.asarray(y)


@settings(max_examples=15, deadline=None)
@given(problems(activations=("none",)))
def test_reference_is_the_loop_nest(problem: Problem) -> None:
    weights, x = random_data(problem)
    np.testing.assert_allclose(
        naive(problem, weights, x), _loop_nest(problem, weights, x), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("case", range(int(_GOLDEN["count"])))
def test_reference_agrees_with_tensorflow(case: int) -> None:
    x, depthwise, pointwise, y = (
        _GOLDEN[f"{name}_{case}"] for name in ("x", "depthwise", "pointwise", "y")
    )
    stride, dilation, same = map(int, _GOLDEN[f"meta_{case}"])
    batch, height, width, channels = x.shape
    kh, kw, _, m = depthwise.shape
    sides: list[int] = []
    for size, kernel in ((height, kh), (width, kw)):
        out = -(-size // stride)
        total = max((out - 1) * stride + dilation * (kernel - 1) + 1 - size, 0) if same else 0
        sides += [total // 2, total - total // 2]
    problem = Problem(
        batch=batch,
        in_channels=channels,
        out_channels=pointwise.shape[-1],
        height=height,
        width=width,
        kernel=(kh, kw),
        stride=(stride, stride),
        padding=(sides[0], sides[1], sides[2], sides[3]),
        dilation=(dilation, dilation),
        channel_multiplier=m,
        bias=False,
    )
    weights = Weights(
        depthwise.transpose(2, 3, 0, 1).reshape(channels * m, 1, kh, kw),
        None,
        pointwise[0, 0].T[:, :, None, None],
        None,
    )
    x = x.transpose(0, 3, 1, 2)
    error = np.abs(naive(problem, weights, x) - y.transpose(0, 3, 1, 2))
    assert (error <= error_bound(problem, weights, x)).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_torchs(activation: str) -> None:
    # A 1x1 problem of one channel with unit weights is the activation alone.
    values = np.linspace(-12, 12, 401, dtype=np.float32).reshape(1, 1, 1, -1)
    problem = Problem(1, 1, 1, 1, 401, (1, 1), bias=False, activations=("none", activation))
    one = np.ones((1, 1, 1, 1), dtype=np.float32)
    y = naive(problem, Weights(one, None, one, None), values)
    expected = TORCH_ACTIVATIONS[activation].function(torch.from_numpy(values).double()).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)


def test_the_bound_is_tight_enough_to_catch_a_lost_tap() -> None:
    problem = Problem.parse("ic16oc16ih12kh3ph1")
    weights, x = random_data(problem)
    assert weights.depthwise is not None
    lost = weights.depthwise.copy()
    lost[3, 0, 1, 1] = 0
    damaged = Weights(lost, weights.depthwise_bias, weights.pointwise, weights.pointwise_bias)
    error = np.abs(naive(problem, damaged, x) - naive(problem, weights, x))
    assert (error > error_bound(problem, weights, x)).any()
