from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnsep.dtypes import DTYPES
from dnnsep.problem import KINDS, Problem
from dnnsep.weights import BatchNorm, Weights, fold_batchnorm, integer_data, random_data
from tests.strategies import problems


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=20))
def test_bf16_rounding_is_torchs(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    expected = torch.from_numpy(array).bfloat16().float().numpy()
    np.testing.assert_array_equal(DTYPES["bf16"].rounded(array), expected)


@settings(max_examples=60, deadline=None)
@given(problems(kinds=tuple(KINDS)))
def test_shapes_and_dtype(problem: Problem) -> None:
    for make in (random_data, integer_data):
        weights, x = make(problem)
        weights.check(problem)
        assert x.shape == problem.input_shape
        for array in (*weights.arrays(), x):
            if array is not None:
                assert array.dtype == np.float32
                np.testing.assert_array_equal(DTYPES[problem.dtype].rounded(array), array)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("ic4oc6ih8kh3kw5cm2", [(8, 1, 3, 5), (8,), (6, 8, 1, 1), (6,)]),
        ("ic4oc6ih8kh3_nobias", [(4, 1, 3, 3), None, (6, 4, 1, 1), None]),
        ("g1ic4oc6ih8kh3kw5", [None, None, (6, 4, 3, 5), (6,)]),
        ("g4ic4oc8ih8kh3kw5", [(8, 1, 3, 5), (8,), None, None]),
        ("g4ic4oc8ih8kh3_nobias", [(8, 1, 3, 3), None, None, None]),
        ("linear_mb3ic4oc6", [None, None, (6, 4, 1, 1), (6,)]),
        ("mean_ic4ih7", [None, None, None, None]),
    ],
)
def test_shapes_of_each_kind(text: str, shapes: list[tuple[int, ...] | None]) -> None:
    for make in (random_data, integer_data):
        weights, _ = make(Problem.parse(text))
        assert [None if a is None else a.shape for a in weights.arrays()] == shapes


def test_weights_of_another_problem_are_named() -> None:
    weights, _ = random_data(Problem.parse("ic8oc8ih8kh3"))
    weights.check(Problem.parse("ic8oc8ih20kh3"))
    for other, message in (
        ("ic8oc8ih8kh5", r"depthwise: shape \(8, 1, 3, 3\), the problem has \(8, 1, 5, 5\)"),
        ("ic8oc9ih8kh3", r"pointwise: shape \(8, 8, 1, 1\)"),
        ("ic8oc8ih8kh3_nobias", r"depthwise_bias: shape \(8,\), the problem has None"),
        ("g8ic8oc8ih8kh3", r"pointwise: shape \(8, 8, 1, 1\), the problem has None"),
        ("g1ic8oc8ih8kh3", r"depthwise: shape \(8, 1, 3, 3\), the problem has None"),
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
    weights, _ = integer_data(Problem.parse("ic2048oc4ih31kh31ph0_bf16"))
    depthwise, pointwise = weights.depthwise, weights.pointwise
    assert depthwise is not None
    assert pointwise is not None
    assert np.abs(depthwise).sum(axis=(1, 2, 3)).max() * 2 + 4 <= 256
    assert np.abs(pointwise).sum(axis=(1, 2, 3)).max() * 256 + 4 < 2**24


def test_integers_of_an_ordinary_convolution_stay_exact() -> None:
    weights, _ = integer_data(Problem.parse("g1ic4096oc2ih7kh7"))
    assert weights.pointwise is not None
    assert np.count_nonzero(weights.pointwise[0]) > 1000
    assert np.abs(weights.pointwise).sum(axis=(1, 2, 3)).max() * 2 + 4 < 2**24


def _norm(channels: int) -> BatchNorm:
    rng = np.random.default_rng(3)
    scale, shift, mean = rng.standard_normal((3, channels)).astype(np.float32)
    return BatchNorm(scale, shift, mean, rng.uniform(0.5, 2, channels).astype(np.float32))


@pytest.mark.parametrize(
    ("text", "stage"),
    [("g4ic4oc8ih8kh3_nobias", "depthwise"), ("g1ic4oc6ih8kh3", "pointwise")],
)
def test_a_norm_is_folded_into_the_only_stage(text: str, stage: str) -> None:
    problem = Problem.parse(text)
    weights, _ = random_data(problem)
    norm = _norm(problem.out_channels)
    folded = fold_batchnorm(weights, **{f"after_{stage}": norm})
    factor = norm.scale / np.sqrt(norm.variance + norm.eps)
    before, after = getattr(weights, stage), getattr(folded, stage)
    np.testing.assert_allclose(after, before * factor[:, None, None, None], rtol=1e-5)
    bias = getattr(weights, f"{stage}_bias")
    start = np.zeros(problem.out_channels) if bias is None else bias
    expected = norm.shift + (start - norm.mean) * factor
    np.testing.assert_allclose(getattr(folded, f"{stage}_bias"), expected, rtol=1e-4, atol=1e-6)
    assert sum(array is not None for array in folded.arrays()) == 2


def test_a_norm_after_a_stage_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="a stage that has no weights"):
        fold_batchnorm(Weights(), after_depthwise=_norm(4))
