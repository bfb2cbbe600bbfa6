from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnsep.dtypes import PRECISIONS, U8
from dnnsep.problem import Problem
from dnnsep.quantization import Affine, Quantization, Requantization, fma
from dnnsep.weights import Weights, integer_data, random_data

_FLOATS = st.floats(width=32, min_value=-(2.0**60), max_value=2.0**60, allow_subnormal=False)


@settings(max_examples=500)
@given(st.integers(-(2**24), 2**24), _FLOATS, _FLOATS)
def test_fma_is_rounded_once(a: int, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = fma(np.array([a], np.float32), np.float32(b), np.float32(c))[0]
    error = abs(Fraction(float(found)) - exact)
    for other in (
        np.nextafter(found, np.float32(np.inf)),
        np.nextafter(found, np.float32(-np.inf)),
    ):
        distance = abs(Fraction(float(other)) - exact)
        assert error <= distance
        if error == distance:  # a tie goes to the even one
            assert not found.view(np.int32) & 1


def test_fma_of_a_sum_that_would_be_rounded_twice() -> None:
    """In f64 the sum is exactly between two numbers of f32, but for what it loses."""
    a, b = np.array([1 + 2.0**-12], np.float32), np.float32(1 + 2.0**-12)
    tiny = np.float32(2.0**-80)
    assert fma(a, b, tiny)[0] == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert fma(a, b, -tiny)[0] == np.float32(1 + 2.0**-11)


def test_sums_become_steps() -> None:
    """By hand: (10 - 2.5) / 0.5 + 3 steps, the other channel by twice the scale."""
    scales, bias = np.array([0.25, 0.5], np.float32), np.array([-2.5, -2.5], np.float32)
    how = Requantization.of(Affine(2.0, 9), scales, bias, Affine(0.5, 3), "none", U8)
    sums = np.full((1, 2, 1, 1), 20.0)
    assert how.naive(sums, "none").reshape(-1).tolist() == [18, 38]


def test_an_activation_that_is_no_limit_comes_before_steps() -> None:
    how = Requantization.of(
        Affine(1.0, 0), np.ones(1, np.float32), None, Affine(0.5, 7), "hardswish", U8
    )
    sums = np.array([-4.0, -1.0, 2.0, 40.0]).reshape(1, 1, 1, 4)
    expected = [7, round(-2 / 6 / 0.5 + 7), round(10 / 6 / 0.5 + 7), 87]
    assert how.naive(sums, "hardswish").reshape(-1).tolist() == expected


@pytest.mark.parametrize("dtype", [n for n, p in PRECISIONS.items() if p.quantized])
def test_data_is_of_its_problem(dtype: str) -> None:
    for text in ("mb2ic5oc6ih7kh3ph1", "g8ic8oc8ih5kh3", "g1ic3oc4ih5kh3", "linear_mb2ic8oc3"):
        problem = replace(Problem.parse(text), dtype=dtype)
        for make in (random_data, integer_data):
            weights, x = make(problem, 3)
            weights.check(problem)
            np.testing.assert_array_equal(problem.precision.source.rounded(x), x)
            told = weights.quantization
            assert told is not None
            back = Quantization.of_arrays(told.arrays())
            assert str(back) == str(told)


def _broken(**changes: object) -> Weights:
    weights, _ = random_data(Problem.parse("ic5oc6ih7kh3_u8s8"))
    told = replace(weights.quantization, **changes)  # type: ignore[type-var]
    return replace(weights, quantization=told)


def test_what_does_not_fit_is_named() -> None:
    problem = Problem.parse("ic5oc6ih7kh3_u8s8")
    weights, _ = random_data(problem)
    assert weights.pointwise is not None
    whole = np.float32
    for broken, message in (
        (
            replace(weights, quantization=None),
            "quantization: has to be there for a problem in u8s8",
        ),
        (_broken(middle=None), "quantization.middle: missing"),
        (_broken(destination=None), "quantization.destination: missing"),
        (_broken(pointwise=np.ones(5, whole)), r"quantization.pointwise: shape \(5,\)"),
        (replace(weights, pointwise=weights.pointwise + 0.5), "pointwise: must be whole numbers"),
        (_broken(destination=Affine(1e-12, 0)), "sums could be more than 2.30 steps of 1e-12"),
    ):
        with pytest.raises(ValueError, match=message):
            broken.check(problem)
    with pytest.raises(ValueError, match="quantization: must not be there for a problem in f32"):
        weights.check(Problem.parse("ic5oc6ih7kh3"))
