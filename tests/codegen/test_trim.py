"""Taps that never meet the image are left out, and no others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from dnnsep.codegen.extras import PLAIN
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.layer import layer_of, stages_of
from dnnsep.codegen.stages.base import Stage
from dnnsep.codegen.trim import Kept, trimmed
from dnnsep.problem import KINDS, Problem
from dnnsep.weights import Weights, integer_data
from tests.codegen.guarded import Inputs, random_plan, run_guarded
from tests.strategies import problems

# What is left of some problems.
LEFT = {
    "g1ic960oc256ih14kh3ph36dh35": "g1ic960oc256ih14kh1",
    "g1ic6oc5ih14kh3ph14dh13_bf16": "g1ic6oc5ih14kh1_bf16",
    "g1ic6oc5ih14kh3ph13dh12": "g1ic6oc5ih14kh3ph13dh12",
    "g1mb2ic6oc5ih1iw9kh3ph1_act:relu": "g1mb2ic6oc5ih1iw9kh1kw3ph0pw1_act:relu",
    "g6ic6oc6ih2kh7ph3": "g6ic6oc6ih2kh3ph1",
    "ic6oc5ih1kh3ph1sh2": "ic6oc5ih1kh1sh2",
    "g1ic6oc5ih4kh5sh4ph4pb0pr0": "g1ic6oc5ih4kh1sh4",
    "g1ic6oc5ih2kh1ph3": "g1ic6oc5ih2kh1ph3",
    "linear_mb4ic8oc5": "linear_mb4ic8oc5",
    "mean_mb2ic8ih4": "mean_mb2ic8ih4",
}


def _naive(stages: tuple[Stage, ...], weights: Weights, problem: Problem) -> np.ndarray:
    y = integer_data(problem)[1].astype(np.float64)
    for stage in stages:
        y = stage.naive(y, weights)
    return y


@pytest.mark.parametrize("text", LEFT)
def test_what_is_left(text: str) -> None:
    problem = Problem.parse(text)
    smaller, kept = trimmed(problem)
    assert smaller == Problem.parse(LEFT[text])
    assert (kept is None) == (smaller == problem)


@given(problems(kinds=tuple(KINDS), any_padding=True))
@settings(max_examples=200, deadline=None)
def test_what_is_left_does_the_same(problem: Problem) -> None:
    smaller, kept = trimmed(problem)
    assert smaller.output_shape == problem.output_shape
    assert trimmed(smaller) == (smaller, None)
    weights, _ = integer_data(problem)
    fewer = weights if kept is None else kept.of(weights)
    fewer.check(smaller)
    naive = _naive(stages_of(problem), weights, problem)
    assert np.array_equal(naive, _naive(stages_of(smaller), fewer, problem))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("text", ["g1mb2ic24oc40ih6kh3ph12dh11", "g24mb2ic24oc24ih1iw6kh5ph2"])
def test_kernels_of_what_is_left(text: str, dtype: str, isa: Isa) -> None:
    problem = Problem.parse(f"{text}_{dtype}")
    inputs = Inputs.of(problem, PLAIN)
    plan = random_plan(problem, isa, np.random.default_rng(0))
    right, finding = inputs.check.verdict(run_guarded(problem, plan, inputs, at_end=True))
    assert right, finding


def test_a_convolution_of_which_one_tap_is_left_is_a_product_alone(isa: Isa) -> None:
    problem = Problem.parse("g1ic64oc64ih14kh3ph18dh17")
    layer = layer_of(problem, isa)
    assert layer.source is None
    assert layer.kept == Kept(1, 2, 1, 2)
    assert layer_of(replace(problem, height=40, width=40), isa).kept is None
