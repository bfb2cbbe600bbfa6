"""The fused kernel touches only its buffers and is right, over random problems and plans."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dnnsep.activations import ACTIVATIONS
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.kernel import Specialization
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.weigh import Caches, all_plans
from dnnsep.dtypes import DTYPES
from dnnsep.problem import KINDS, Problem
from dnnsep.sweep.check import CheckData
from tests.codegen.conftest import ISAS, SETTING_OF
from tests.codegen.guarded import Case, Guarded, Inputs, random_plan, run_guarded
from tests.codegen.running import run_alone

EXTRAS = {
    "g1mb3ic37oc70ih5kh1_act:relu": Extras(residual=True, scale=True),
    "g1mb3ic20oc33ih2iw40kh1_bf16": Extras(residual=True, scale=True),
    "g1mb3ic5oc33ih5kh3ph1_act:relu6": Extras(residual=True),
    "mb3ic20oc70ih2iw40kh3ph1_bf16": Extras(residual=True),
    "linear_mb40ic20oc70_act:silu": Extras(residual=True),
    "g70mb2ic70oc70ih9kh3ph1_act:relu6_bf16": Extras(residual=True),
    "g40mb2ic40oc40ih2iw40kh3ph1_act:silu": Extras(residual=True),
}


@pytest.mark.parametrize("setting", SETTING_OF.values(), ids=lambda s: "-".join(s.values()))
def test_random_problems(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.guarded", setting, seed=1, count=15)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTING_OF.values(), ids=lambda s: "-".join(s.values()))
def test_many_random_problems(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.guarded", setting, seed=2, count=150)


def _traits(case: Case) -> dict[str, bool]:
    """Returns what a case may be an example of, and whether it is."""
    problem, plan = case.problem, case.plan
    top, bottom, left, right = problem.padding
    reach = [d * (k - 1) + 1 for d, k in zip(problem.dilation, problem.kernel, strict=True)]
    skips = layer_of(problem, plan.isa).skips_taps
    reads = layer_of(problem, plan.isa).reads_input and not case.extras.scale
    return {
        **{kind: problem.kind == kind for kind in KINDS},
        **{dtype: problem.dtype == dtype for dtype in DTYPES},
        **{name: name in problem.activations for name in ACTIVATIONS},
        "residual": case.extras.residual and not case.extras.after,
        "residual after": case.extras.after,
        "residual of a depthwise layer": case.extras.residual and problem.kind == "depthwise",
        **{name: pitch > 0 for name, pitch in vars(case.extras).items() if "pitch" in name},
        "read slice": reads and not plan.gathers and case.extras.x_pitch > 0,
        "odd slice": case.extras.x_pitch % 2 > 0,
        "scale": case.extras.scale,
        "input read where it is": reads and not plan.gathers,
        "input copied that could be read": reads and plan.gathers,
        "cropped": min(bottom, right) < 0,
        "padding beyond the kernel": max(top, bottom) >= reach[0] or max(left, right) >= reach[1],
        "taps skipped in cut rows": skips and not plan.short_rows,
        "taps skipped in whole rows": skips and plan.whole_rows(problem.out_pixels) > 0,
        "taps skipped in other pieces": skips
        and plan.short_rows
        and not plan.whole_rows(problem.out_pixels),
        "trimmed": layer_of(problem, plan.isa).kept is not None,
        "wide kernel": problem.kernel[1] > 8,
        "strided": problem.stride != (1, 1),
        "dilated": problem.dilation != (1, 1),
        "multiplier": problem.channel_multiplier > 1,
        "short rows": plan.short_rows,
        "cut rows": not plan.short_rows,
        "parts of pixels": plan.pixel_parts > 1,
        "parts of channels": plan.channel_parts > 1,
        "streaming": plan.streaming,
        "prefetch": plan.prefetch,
        "ahead": bool(plan.ahead),
        **({"overlap": plan.overlap} if plan.isa.software_tiles else {}),
        "at the end": case.at_end,
        "at the start": not case.at_end,
    }


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_every_kind_of_case_is_drawn(isa: Isa) -> None:
    rng = np.random.default_rng(0)
    drawn: Counter[str] = Counter()
    for _ in range(3200):
        drawn.update(_traits(Case.draw(rng, isa)))
    assert {trait for trait, count in drawn.items() if count < 4} == set()


def test_a_byte_outside_kills() -> None:
    script = "from tests.codegen.guarded import Guarded; import ctypes; b = Guarded(100, {}); "
    for at_end, offset in ((True, 100), (False, -1)):
        poke = f"ctypes.memset(b.bytes.ctypes.data + {offset}, 0, 1)"
        run = subprocess.run([sys.executable, "-c", script.format(at_end) + poke], check=False)
        assert run.returncode < 0
    watched = Guarded(100, at_end=False)
    watched._rest[0] = 0
    assert not watched.untouched


@pytest.mark.parametrize("text", EXTRAS)
def test_extras(text: str, isa: Isa) -> None:
    """A residual of every panel's channels, a scale of each image's own."""
    problem = Problem.parse(text)
    inputs = Inputs.of(problem, EXTRAS[text], seed=1)
    plan = random_plan(problem, isa, np.random.default_rng(0))
    right, finding = inputs.check.verdict(run_guarded(problem, plan, inputs, at_end=True))
    assert right, finding


SLICED = (
    "mb2ic37oc70ih15iw29kh3ph1_act:relu,none",
    "mb2ic64oc64ih7kh3ph1",
    "g1mb3ic48oc70ih9kh1",
    "g1mb2ic64oc64ih20kh1",
    "g1mb2ic20oc64ih9kh3ph1sh2",
    "g70mb2ic70oc70ih9iw21kh3ph1",
    "linear_mb40ic64oc70",
    "mean_mb3ic70ih4",
)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", SLICED)
def test_slices_of_wider_tensors(text: str, dtype: str, isa: Isa) -> None:
    """Of every kind of layer, to the bit what dense memory gives: with whole lines between pixels,
    and with pixels that begin anywhere."""
    problem = Problem.parse(f"{text}_{dtype}")
    rng, residual = np.random.default_rng(0), problem.kind != "mean"
    for wider, at_end in ((32, False), (13, True)):
        plan = random_plan(problem, isa, rng)
        x, y = problem.in_channels + wider, problem.out_channels + wider
        extras = Extras(residual, x_pitch=x, y_pitch=y, residual_pitch=y if residual else 0)
        inputs = Inputs.of(problem, extras)
        found = run_guarded(problem, plan, inputs, at_end)
        right, finding = inputs.check.verdict(found)
        assert right, finding
        dense = run_guarded(problem, plan, replace(inputs, extras=extras.dense), at_end)
        assert np.array_equal(found, dense)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "text",
    [
        "mb2ic20oc40ih9kh3ph1_act:none,silu",
        "g1mb2ic20oc40ih9kh1_act:silu_bf16",
        "g1mb2ic20oc40ih9kh3ph1_act:hardswish",
        "g40mb2ic40oc40ih9kh3ph1_act:gelu",
        "g40mb2ic40oc40ih9kh3ph1_act:relu_bf16",
        "linear_mb20ic40oc20_act:sigmoid",
    ],
)
def test_a_residual_before_or_after_the_activation(text: str, after: bool, isa: Isa) -> None:
    problem = Problem.parse(text)
    inputs = Inputs.of(problem, Extras(residual=True, after=after))
    other = Inputs.of(problem, Extras(residual=True, after=not after))
    plan = random_plan(problem, isa, np.random.default_rng(0))
    found = run_guarded(problem, plan, inputs, at_end=True)
    right, finding = inputs.check.verdict(found)
    assert right, finding
    assert not other.check.verdict(found)[0]


def test_extras_that_a_kernel_cannot_have_are_refused(isa: Isa) -> None:
    for text, extras, message in (
        ("mean_mb2ic24ih4", Extras(residual=True), "residual: only a layer"),
        ("mb2ic24oc24ih4kh3ph1", Extras(after=True), "after: there is no residual"),
        ("mb2ic24oc24ih4kh3ph1", Extras(residual_pitch=32), "residual_pitch: there is no"),
        ("mb2ic24oc40ih4kh3ph1", Extras(x_pitch=23), "x_pitch=23: a pixel has 24 channels"),
        ("mb2ic24oc40ih4kh3ph1", Extras(y_pitch=39), "y_pitch=39: a pixel has 40 channels"),
    ):
        problem = Problem.parse(text)
        plan = random_plan(problem, isa, np.random.default_rng(0))
        with pytest.raises(ValueError, match=message):
            Specialization.of(problem, plan, extras).module()


def test_a_slice_is_not_streamed_into(isa: Isa) -> None:
    problem = Problem.parse("mb2ic16oc64ih20kh3ph1")
    plan = next(all_plans(problem, isa, 2, Caches(1 << 10, 1 << 12, 1 << 12)))
    assert Specialization.of(problem, plan).plan.streaming
    assert not Specialization.of(problem, plan, Extras(y_pitch=128)).plan.streaming


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "mb2ic37oc70ih15iw29kh3ph1_act:silu,none",
        "ic64oc96ih7kh3ph1_bf16",
        "g1ic50oc70ih9kh1",
        "g1mb2ic16oc70ih7kh3ph1",
        "g1ic8oc70ih6iw30kh3ph2dh1_bf16",
    ],
)
def test_plans_give_the_same_bits(text: str, isa: Isa) -> None:
    """Whatever the caches and the threads: nothing about the plan changes the order of sums."""
    problem = Problem.parse(text)
    data = CheckData.random(problem)
    plans = {
        replace(plan, gathers=gathers)
        for caches in (Caches(1 << 10, 1 << 12, 1 << 14), Caches(1 << 16, 1 << 20, 1 << 25))
        for threads in (1, 2, 3, 4)
        for plan in all_plans(problem, isa, threads, caches)
        for gathers in (plan.gathers, layer_of(problem, isa).reads_input)
    }
    assert len(plans) > 10
    some = random.Random(1).sample(sorted(plans, key=str), 5)
    answers = [run_guarded(problem, plan, Inputs(data), at_end=True) for plan in some]
    assert data.verdict(answers[0])[0]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
