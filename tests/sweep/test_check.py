from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dnnsep import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.weights import round_to_dtype


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_integers_tolerate_nothing(dtype: str) -> None:
    problem = Problem.parse(f"ic8oc8ih8kh3ph1_{dtype}")
    data = CheckData.exact(problem)
    assert data.bound is None
    right = data.expected.astype(np.float32)
    assert data.verdict(right) == (True, "exactly equal to the reference")
    wrong = right.copy()
    wrong[0, 3, 2, 1] += 1
    correct, finding = data.verdict(wrong)
    assert not correct
    assert "1 of 512 outputs are wrong, first at (0, 3, 2, 1)" in finding


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
    assert data.verdict(round_to_dtype(data.expected, "bf16"))[0]
    assert not data.verdict((data.expected + 1.01 * data.bound).astype(np.float32))[0]


def test_wrong_shape() -> None:
    data = CheckData.exact(Problem.parse("ic8oc8ih8kh3ph1"))
    assert "shape (8, 8)" in data.verdict(np.zeros((8, 8), dtype=np.float32))[1]


def test_data_that_would_be_all_zero_are_replaced() -> None:
    # One channel and two ReLUs: for some seeds the integers leave nothing.
    problem = Problem.parse("ic1oc2ih16kh1_nobias_act:relu,relu")
    kinds = {CheckData.exact(problem, seed).bound is None for seed in range(40)}
    assert kinds == {True, False}


@pytest.mark.parametrize("text", ["ic4oc4ih6kh3_nobias", "ic4oc4ih6kh3_act:gelu,none"])
def test_saved_data_come_back(text: str, tmp_path: Path) -> None:
    data = CheckData.exact(Problem.parse(text))
    data.save(tmp_path / "data.npz")
    back = CheckData.load(tmp_path / "data.npz")
    np.testing.assert_array_equal(back.expected, data.expected)
    np.testing.assert_array_equal(back.x, data.x)
    assert (back.bound is None) == (data.bound is None)
    assert (back.weights.depthwise_bias is None) == (data.weights.depthwise_bias is None)
