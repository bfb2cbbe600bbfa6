from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnsep.backends.reference import separable
from dnnsep.problem import Problem
from dnnsep.weights import integer_data, random_data, round_to_dtype
from tests.strategies import problems


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=20))
def test_bf16_rounding_is_torchs(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    expected = torch.from_numpy(array).bfloat16().float().numpy()
    np.testing.assert_array_equal(round_to_dtype(array, "bf16"), expected)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_shapes_and_dtype(problem: Problem) -> None:
    for make in (random_data, integer_data):
        weights, x = make(problem)
        assert weights.depthwise.shape == (problem.mid_channels, 1, *problem.kernel)
        assert weights.pointwise.shape == (problem.out_channels, problem.mid_channels, 1, 1)
        assert x.shape == problem.input_shape
        assert (weights.depthwise_bias is not None) == problem.bias
        for array in (weights.depthwise, weights.pointwise, x):
            assert array.dtype == np.float32
            np.testing.assert_array_equal(round_to_dtype(array, problem.dtype), array)


def test_weights_of_another_problem_are_named() -> None:
    weights, _ = random_data(Problem.parse("ic8oc8ih8kh3"))
    weights.check(Problem.parse("ic8oc8ih20kh3"))
    for other, message in (
        ("ic8oc8ih8kh5", r"depthwise: shape \(8, 1, 3, 3\), the problem has \(8, 1, 5, 5\)"),
        ("ic8oc9ih8kh3", r"pointwise: shape \(8, 8, 1, 1\)"),
        ("ic8oc8ih8kh3_nobias", r"depthwise_bias: shape \(8,\), the problem has None"),
    ):
        with pytest.raises(ValueError, match=message):
            weights.check(Problem.parse(other))


def test_data_follow_the_seed() -> None:
    problem = Problem.parse("ic8oc8ih8kh3")
    for make in (random_data, integer_data):
        np.testing.assert_array_equal(make(problem, 1)[1], make(problem, 1)[1])
        assert not np.array_equal(make(problem, 1)[1], make(problem, 2)[1])


def test_integers_stay_exact_in_the_worst_case() -> None:
    # Large kernel, many channels: every intermediate fits bf16, every result float32.
    problem = Problem.parse("ic2048oc4ih31kh31ph0_bf16")
    weights, x = integer_data(problem)
    extreme = separable(problem, weights, np.full_like(x, 2))
    assert np.abs(weights.depthwise).sum(axis=(1, 2, 3)).max() * 2 + 4 <= 256
    assert np.abs(extreme).max() < 2**24
