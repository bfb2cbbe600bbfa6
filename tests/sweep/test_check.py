from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dnnsep import Problem
from dnnsep.dtypes import DTYPES
from dnnsep.sweep.check import CheckData

_KINDS = ("ic8oc8ih8kh3ph1", "g1ic8oc8ih8kh3ph1", "g8ic8oc8ih8kh3ph1", "linear_mb64ic8oc8")


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("text", _KINDS)
def test_integers_tolerate_nothing(text: str, dtype: str) -> None:
    data = CheckData.exact(Problem.parse(f"{text}_{dtype}"))
    assert data.bound is None
    right = data.expected.astype(np.float32)
    assert data.verdict(right) == (True, "exactly equal to the reference")
    wrong = right.copy()
    place = tuple(size // 2 for size in wrong.shape)
    wrong[place] += 1
    correct, finding = data.verdict(wrong)
    assert not correct
    assert f"1 of 512 outputs are wrong, first at {place}" in finding


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_mean_is_held_to_the_bound(dtype: str) -> None:
    """The mean of integers is a fraction, which no dtype need hold."""
    for text in ("mean_mb2ic8ih7", "mean_mb2ic8ih5iw9"):
        data = CheckData.exact(Problem.parse(f"{text}_{dtype}"))
        assert data.bound is not None
        assert data.verdict(DTYPES[dtype].rounded(data.expected))[0]
        assert not data.verdict((data.expected + 1.01 * data.bound).astype(np.float32))[0]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", ["ic8oc8ih8kh3ph1", "ic8oc8ih8kh3ph1_act:silu,none"])
def test_nan_and_infinity_are_wrong(text: str, poison: float) -> None:
    data = CheckData.exact(Problem.parse(text))
    y = data.expected.astype(np.float32)
    assert data.verdict(y)[0]
    y[0, 0, 0, 0] = poison
    assert not data.verdict(y)[0]


def test_random_data_are_held_to_the_bound() -> None:
    problem = Problem.parse("ic8oc8ih8kh3ph1_bf16")
    data = CheckData.random(problem)
    assert data.bound is not None
    assert data.verdict(DTYPES["bf16"].rounded(data.expected))[0]
    assert not data.verdict((data.expected + 1.01 * data.bound).astype(np.float32))[0]


def test_wrong_shape() -> None:
    data = CheckData.exact(Problem.parse("ic8oc8ih8kh3ph1"))
    assert "shape (8, 8)" in data.verdict(np.zeros((8, 8), dtype=np.float32))[1]


def test_data_that_would_be_all_zero_are_replaced() -> None:
    # One channel and two ReLUs: for some seeds the integers leave nothing.
    problem = Problem.parse("ic1oc2ih16kh1_nobias_act:relu,relu")
    kinds = {CheckData.exact(problem, seed).bound is None for seed in range(40)}
    assert kinds == {True, False}


@pytest.mark.parametrize(
    "text",
    [
        *("ic4oc4ih6kh3_nobias", "ic4oc4ih6kh3_act:gelu,none", "g1ic4oc4ih6kh3"),
        *("g4ic4oc8ih6kh3_act:silu", "linear_mb9ic4oc4_nobias", "mean_ic4ih7"),
    ],
)
def test_saved_data_come_back(text: str, tmp_path: Path) -> None:
    data = CheckData.exact(Problem.parse(text))
    data.save(tmp_path / "data.npz")
    back = CheckData.load(tmp_path / "data.npz")
    np.testing.assert_array_equal(back.expected, data.expected)
    np.testing.assert_array_equal(back.x, data.x)
    assert (back.bound is None) == (data.bound is None)
    for mine, other in zip(back.weights.arrays(), data.weights.arrays(), strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            np.testing.assert_array_equal(mine, other)
