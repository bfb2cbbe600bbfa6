"""The figures of the documents the project started from, and the formulas behind them."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given

from dnnsep.cost import closed_form_ratio, cost
from dnnsep.problem import Problem
from tests.strategies import problems


def test_128x128_8_to_64() -> None:
    c = cost(Problem.parse("mb1ic8oc64ih128kh3"))
    assert (c.ordinary_parameters, c.parameters) == (4672, 656)
    assert (f"{c.ordinary_macs / 1e9:.2f}", f"{c.macs / 1e9:.2f}") == ("0.07", "0.01")


def test_228x228_3_to_64_stride_2() -> None:
    problem = Problem.parse("mb1ic3oc64ih228kh5sh2")
    c = cost(problem)
    assert problem.output_shape == (1, 64, 112, 112)
    assert (c.ordinary_weights, c.ordinary_biases, c.ordinary_parameters) == (4800, 64, 4864)
    assert c.parameters == 75 + 3 + 192 + 64 == 334
    assert round(100 * c.parameter_reduction, 2) == 93.13


@pytest.mark.parametrize("out_channels", [64, 128, 256, 512, 1024])
def test_mobilenet_reduction_is_8_to_9_times(out_channels: int) -> None:
    problem = Problem.parse(f"ic64oc{out_channels}ih14kh3ph1")
    assert closed_form_ratio(problem) == pytest.approx(1 / out_channels + 1 / 9)
    assert 7.8 < 1 / closed_form_ratio(problem) < 9


@given(problems())
def test_closed_form_equals_the_counted_ratio(problem: Problem) -> None:
    assert cost(problem).cost_ratio == pytest.approx(closed_form_ratio(problem))


@given(problems())
def test_flops_follow_the_formula(problem: Problem) -> None:
    bs, ic, oc = problem.batch, problem.in_channels, problem.out_channels
    oh, ow, (kh, kw), m = (
        problem.out_height,
        problem.out_width,
        problem.kernel,
        problem.channel_multiplier,
    )
    c = cost(problem)
    assert c.flops == 2 * bs * oh * ow * ic * m * (kh * kw + oc)
    assert c.ordinary_flops == 2 * bs * ic * oh * ow * kh * kw * oc
    assert c.depthwise_macs + c.pointwise_macs == c.macs


def test_macs_equal_a_count_of_the_loop_nest() -> None:
    problem = Problem.parse("mb2ic3oc5ih7iw6kh3kw2sh2sw1ph1cm2")
    pixels = product(range(2), range(problem.out_height), range(problem.out_width))
    macs = sum(3 * 2 * 3 * 2 + 3 * 2 * 5 for _ in pixels)
    assert cost(problem).macs == macs


def test_bytes_and_intensity() -> None:
    c = cost(Problem.parse("mb1ic2oc4ih4kh1_nobias"))
    elements = 2 * 16 + 4 * 16 + 2 + 2 * 4
    assert c.bytes_fused == 4 * elements
    assert c.bytes_staged == 4 * (elements + 2 * 2 * 16)
    assert c.intensity_fused == c.flops / c.bytes_fused > c.intensity_staged
    half = cost(Problem.parse("mb1ic2oc4ih4kh1_nobias_bf16"))
    assert 2 * half.bytes_fused == c.bytes_fused
