"""The activations in generated code, over everything from tiny to huge, NaN and infinity."""

from __future__ import annotations

import numpy as np
import pytest
from llvmlite import ir

from dnnsep.activations import ACTIVATIONS
from dnnsep.codegen.lang.activate import activate
from dnnsep.codegen.lang.emit import F32, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.dtypes import Array
from tests.codegen.pieces import Memory, function_of


def _activated(isa: Isa, name: str, x: Array, rough: bool = False) -> Array:
    kind = ir.VectorType(F32, isa.lanes)

    def body(code: Code) -> None:
        source, target, vectors = code.arguments

        def one(at: ir.Value) -> None:
            value = code.load(code.at(source, at, kind), kind)
            code.store(activate(code, name, value, rough), code.at(target, at, kind))

        code.for_each(I64(0), vectors, one)

    whole = np.concatenate([x, np.zeros(-len(x) % isa.lanes, np.float32)])
    source, target = Memory(whole, True), Memory(np.full_like(whole, -9), True)
    function = function_of(isa, [POINTER, POINTER, I64], body)
    function(source.at(0), target.at(0), len(whole) // isa.lanes)
    assert source.unchanged
    return target.array[: len(x)].copy()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_within_the_approximation(name: str, isa: Isa) -> None:
    far = np.logspace(-44, 37, 20_000)  # beyond, six times it is infinite, which hardswish needs
    x = np.concatenate([np.linspace(-20, 20, 100_001), far, -far]).astype(np.float32)
    exact = x.astype(np.float64)
    right = ACTIVATIONS[name].naive(exact)
    allowed = ACTIVATIONS[name].approximation * 2.0**-24 * (1 + np.abs(exact))
    assert (np.abs(_activated(isa, name, x) - right) <= allowed).all()


@pytest.mark.parametrize("name", ["silu", "gelu", "hardswish"])
def test_within_a_few_units_in_the_last_place(name: str, isa: Isa) -> None:
    """Of the larger of 1 and |x|; and far below nothing is left, not |x| times a last bit."""
    far = np.logspace(-30, 4, 5_000)
    x = np.concatenate([np.linspace(-12, 12, 10_000), far, -far]).astype(np.float32)
    exact = x.astype(np.float64)
    y = _activated(isa, name, x)
    unit = 2.0**-24 * np.maximum(1, np.abs(exact))
    assert (np.abs(y - ACTIVATIONS[name].naive(exact)) <= 4 * unit).all()
    assert (np.abs(y[exact < -100]) <= 1e-6).all()


@pytest.mark.parametrize("name", ["silu", "sigmoid"])
def test_a_rough_one_is_right_to_bf16(name: str, isa: Isa) -> None:
    """Relative to itself, so also where it is small, as long as it is a normal number."""
    far = np.logspace(-30, 37, 20_000)
    x = np.concatenate([np.linspace(-80, 80, 100_001), far, -far[far < 80]]).astype(np.float32)
    exact = x.astype(np.float64)
    right = (exact if name == "silu" else 1) / (1 + np.exp(-exact))
    y = _activated(isa, name, x, rough=True)
    np.testing.assert_allclose(y, right, rtol=1.4e-4, atol=0)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_and_infinity(name: str, rough: bool, isa: Isa) -> None:
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, 1.0], np.float32)
    y = _activated(isa, name, x, rough)
    assert np.isnan(y[:2]).all()
    with np.errstate(invalid="ignore"):
        right = ACTIVATIONS[name].naive(x.astype(np.float64))
    if name == "gelu":
        right[2] = np.nan  # as torch has it, but for a tensor of a single number
    np.testing.assert_array_equal(y[2:4], right[2:4])
    assert np.isfinite(y[4])


def test_an_unknown_one_is_named(isa: Isa) -> None:
    with pytest.raises(ValueError, match="activation 'tanh'"):
        _activated(isa, "tanh", np.zeros(1, np.float32))
