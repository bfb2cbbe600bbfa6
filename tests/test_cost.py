"""The figures of the documents the project started from, and the formulas behind them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from dnnsep.cost import closed_form_ratio, cost
from dnnsep.problem import KINDS, Problem
from dnnsep.report.cost import as_dict, as_table
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


def _counted_macs(problem: Problem) -> int:
    """Counts the multiply-adds of the loop nest, one output pixel after the other."""
    taps = [(y, x) for y in range(problem.kernel[0]) for x in range(problem.kernel[1])]
    macs = 0
    for _image in range(problem.batch):
        for _y in range(problem.out_height):
            for _x in range(problem.out_width):
                if problem.kind in ("separable", "depthwise"):
                    macs += sum(problem.mid_channels for _ in taps)
                if problem.kind == "separable":
                    macs += problem.mid_channels * problem.out_channels
                elif problem.kind in ("convolution", "linear"):
                    macs += sum(problem.in_channels * problem.out_channels for _ in taps)
                elif problem.kind == "mean":
                    macs += sum(problem.in_channels for _ in taps)
    return macs


@settings(max_examples=50, deadline=None)
@given(problems(kinds=tuple(KINDS), any_padding=True))
def test_macs_equal_a_count_of_the_loop_nest(problem: Problem) -> None:
    c = cost(problem)
    assert c.macs == _counted_macs(problem)
    assert c.macs == c.depthwise_macs + c.pointwise_macs


@pytest.mark.parametrize(
    ("text", "weights", "biases", "macs", "elements"),
    [
        ("g1mb2ic3oc5ih4kh3", 5 * 3 * 9, 5, 2 * 4 * 5 * 3 * 9, 2 * 3 * 16 + 2 * 5 * 4),
        ("g3mb2ic3oc6ih4kh3_nobias", 6 * 9, 0, 2 * 4 * 6 * 9, 2 * 3 * 16 + 2 * 6 * 4),
        ("linear_mb7ic3oc5", 3 * 5, 5, 7 * 3 * 5, 7 * 3 + 7 * 5),
        ("mean_mb2ic3ih4iw5", 0, 0, 2 * 3 * 20, 2 * 3 * 20 + 2 * 3),
    ],
)
def test_one_stage(text: str, weights: int, biases: int, macs: int, elements: int) -> None:
    for dtype, size in (("", 4), ("_bf16", 2)):
        c = cost(Problem.parse(text + dtype))
        assert (c.weights, c.biases, c.parameters) == (weights, biases, weights + biases)
        assert (c.macs, c.flops) == (macs, 2 * macs)
        assert c.bytes_fused == c.bytes_staged == size * (elements + weights + biases)


@given(problems(kinds=("convolution", "linear")))
def test_an_ordinary_layer_costs_what_it_is_compared_with(problem: Problem) -> None:
    c = cost(problem)
    assert (c.macs, c.parameters) == (c.ordinary_macs, c.ordinary_parameters)
    assert (c.cost_ratio, c.parameter_reduction) == (1, 0)


@given(problems(kinds=("depthwise",)))
def test_depthwise_does_one_channel_of_an_ordinary_one(problem: Problem) -> None:
    assert cost(problem).cost_ratio == pytest.approx(1 / problem.in_channels)


@given(problems(kinds=tuple(KINDS)))
def test_what_is_shown_is_what_is_counted(problem: Problem) -> None:
    c, shown = cost(problem), as_dict(problem)
    own = shown[problem.kind]
    assert (own["parameters"], own["flops"]) == (c.parameters, c.flops)
    assert ("ordinary" in shown) == (problem.kind in ("separable", "depthwise"))
    assert ("bytes" in own) == (problem.kind != "separable")
    assert shown["output_shape"] == problem.output_shape
    table = as_table(problem)
    assert table.title == str(problem)
    assert f"{c.flops:,}" in {cell for column in table.columns for cell in column.cells}


def test_bytes_and_intensity() -> None:
    c = cost(Problem.parse("mb1ic2oc4ih4kh1_nobias"))
    elements = 2 * 16 + 4 * 16 + 2 + 2 * 4
    assert c.bytes_fused == 4 * elements
    assert c.bytes_staged == 4 * (elements + 2 * 2 * 16)
    assert c.intensity_fused == c.flops / c.bytes_fused > c.intensity_staged
    half = cost(Problem.parse("mb1ic2oc4ih4kh1_nobias_bf16"))
    assert 2 * half.bytes_fused == c.bytes_fused
