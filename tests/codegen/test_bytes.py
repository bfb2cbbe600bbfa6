"""Kernels of bytes: right to the bit on every kind of vectors, at their limits above all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dnnsep.backends.reference import naive
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.general import as_run
from dnnsep.codegen.kernel import Specialization
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.layer import layer_of
from dnnsep.dtypes import PRECISIONS, Array, ByteDtype
from dnnsep.problem import Problem
from dnnsep.quantization import Affine, Quantization
from dnnsep.sweep.check import CheckData
from dnnsep.weights import Weights, random_data
from tests.codegen.conftest import BYTE_SETTING_OF
from tests.codegen.guarded import Inputs, random_plan, run_guarded
from tests.codegen.running import run_alone

SETTINGS = list(BYTE_SETTING_OF.values())
LAYER = "mb2ic37oc40ih9iw11kh3ph1"


@pytest.fixture(params=BYTE_SETTING_OF, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Isa:
    """Returns each kind of vectors that this CPU has for bytes, which ``this_isa`` then returns
    too."""
    found: Isa = request.param
    for variable, value in BYTE_SETTING_OF[found].items():
        monkeypatch.setenv(variable, value)
    return found


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_random_problems(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.guarded", setting, 3, 20, "bytes")


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_many_random_problems(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.guarded", setting, 4, 60, "bytes")


def test_each_kind_of_vectors_multiplies_in_its_own_way(isa: Isa) -> None:
    (name,) = {
        "avx2": ["widened_u8s8"],
        "avx2_vnni": ["vex_vnni_u8s8"],
        "avx512": ["widened_u8s8"],
        "avx512_vnni": ["vnni_u8s8"],
        "avx512_bf16": ["vnni_u8s8"],
    }.get(isa.name, ["amx_u8s8"])
    problem = Problem.parse("g1mb8ic256oc256ih14kh1_u8s8")
    assert layer_of(problem, isa).dot.name in (name, "vnni_u8s8")


def _checked(problem: Problem, isa: Isa, weights: Weights, x: Array) -> np.ndarray:
    """Runs it; returns what is right, which it has to be to the bit."""
    weights.check(problem)
    right = naive(problem, weights, x)
    plan = random_plan(problem, isa, np.random.default_rng(1))
    found = run_guarded(problem, plan, Inputs(CheckData(weights, x, right, None)), at_end=True)
    np.testing.assert_array_equal(found, right)
    return right


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("text", ["ic37oc40ih9kh7ph3_u8s8f32", "g1ic64oc20ih5kh3ph1_u8s8f32"])
def test_the_largest_sums_do_not_saturate(text: str, sign: int, isa: Isa) -> None:
    """Two neighbouring products of these are beyond what 16 bits hold."""
    problem = Problem.parse(text)
    weights, x = random_data(problem)
    extreme = {
        name: np.full_like(array, 127 if sign > 0 else -128)
        for name, array in vars(weights).items()
        if name in ("depthwise", "pointwise") and array is not None
    }
    told = weights.quantization
    assert told is not None
    told = replace(told, source=Affine(told.source.scale, 0))
    _checked(problem, isa, replace(weights, **extreme, quantization=told), np.full_like(x, 255))


@pytest.mark.parametrize("dtype", [n for n, p in PRECISIONS.items() if p.quantized])
@pytest.mark.parametrize("at", ["low", "high"])
def test_zero_points_at_the_ends(at: str, dtype: str, isa: Isa) -> None:
    """Of all tensors, with padding that stands for 0 around the image."""
    problem = replace(Problem.parse(LAYER), dtype=dtype)
    weights, x = random_data(problem, seed=2)
    told, precision = weights.quantization, problem.precision
    assert told is not None

    def moved(affine: Affine | None, tensor: object) -> Affine | None:
        if affine is None:
            return None
        assert isinstance(tensor, ByteDtype)
        return Affine(affine.scale, getattr(tensor, at))

    source = moved(told.source, precision.source)
    assert source is not None
    middle = moved(told.middle, precision.between)
    destination = moved(told.destination, precision.destination)
    told = replace(told, source=source, middle=middle, destination=destination)
    _checked(problem, isa, replace(weights, quantization=told), x)


@pytest.mark.parametrize("text", ["linear_mb40ic32oc40_u8s8", "g33ic33oc33ih20kh1_u8s8"])
def test_halves_go_to_even(text: str, isa: Isa) -> None:
    """Sums of one input by 1 become halves of steps."""
    problem = replace(Problem.parse(text), bias=False)
    weights, x = random_data(problem)
    told = weights.quantization
    assert told is not None
    one = {
        name: np.zeros_like(array)
        for name, array in vars(weights).items()
        if name in ("depthwise", "pointwise") and array is not None
    }
    (name,) = one
    one[name][:, 0] = 1
    scale = np.full(len(one[name]), 0.5, np.float32)
    told = replace(
        Quantization(Affine(1.0, 0), Affine(1.0, 3)),
        depthwise=scale if name == "depthwise" else None,
        pointwise=scale if name == "pointwise" else None,
    )
    right = _checked(problem, isa, Weights(**one, quantization=told), x)
    assert {0, 1} <= set(np.unique(right - 3) % 2)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("text", ["g1ic20oc70ih6kh1", "g70ic70oc70ih6kh3ph1"])
def test_outputs_beyond_the_limits(text: str, activation: str, isa: Isa) -> None:
    """Far beyond them on both sides; of an activation they are within a byte."""
    problem = Problem.parse(f"{text}_act:{activation}_u8s8")
    weights, x = random_data(problem, seed=5)
    told = weights.quantization
    assert told is not None
    for scale in (1e-5, 0.05):
        to = Affine(scale, 40)
        right = _checked(
            problem, isa, replace(weights, quantization=replace(told, destination=to)), x
        )
        low, high = {"none": (0, 255), "relu": (40, 255), "relu6": (40, min(255, 40 + 6 / scale))}[
            activation
        ]
        assert right.min() >= low
        assert right.max() <= high
        if scale < 1e-3:
            assert set(np.unique(right)) >= {low, high}


@pytest.mark.parametrize("activation", ["relu", "hardswish"])
@pytest.mark.parametrize("text", ["g1ic20oc70ih6kh1", "g70ic70oc70ih6kh3ph1"])
def test_outputs_beyond_what_32_bits_hold(text: str, activation: str, isa: Isa) -> None:
    """As a layer has that was calibrated on zeros: a scale that is nearly 0."""
    problem = Problem.parse(f"{text}_act:{activation}_u8s8")
    weights, x = random_data(problem, seed=6)
    assert weights.quantization is not None
    told = replace(weights.quantization, destination=Affine(1e-15, 9))
    weights = replace(weights, quantization=told)
    right = naive(problem, weights, x)
    assert {0 if activation == "hardswish" else 9, 255} <= set(np.unique(right))
    plan = random_plan(problem, isa, np.random.default_rng(1))
    found = run_guarded(problem, plan, Inputs(CheckData(weights, x, right, None)), at_end=True)
    np.testing.assert_array_equal(found, right)


def test_what_is_not_there_is_refused(isa: Isa) -> None:
    with pytest.raises(ValueError, match="no kernel for a multiplier in u8s8"):
        layer_of(Problem.parse("ic4oc4ih4kh1cm2_u8s8"), isa)
    problem = Problem.parse("g1ic4oc4ih4kh1_u8s8")
    plan = random_plan(problem, isa, np.random.default_rng(0))
    with pytest.raises(ValueError, match="a quantised layer takes neither"):
        Specialization.of(problem, plan, Extras(residual=True, after=True)).module()
    with pytest.raises(ValueError, match="no general kernel"):
        as_run(layer_of(problem, isa), Extras())
