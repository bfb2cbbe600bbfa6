"""Cascades give what their layers give one after the other, to the bit, however they are cut."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.links import Member
from dnnsep.codegen.cascade.schedule import Move, Run
from dnnsep.codegen.cascade.step import CascadeStep, Cut
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.rowwise.expression import operand, pixels
from dnnsep.codegen.rowwise.special import PixelReduction, Rowwise
from dnnsep.codegen.rowwise.step import PixelReductionStep, RowwiseStep
from dnnsep.codegen.step import Step
from dnnsep.codegen.weigh import all_plans, this_caches
from dnnsep.host.turns import Turns
from dnnsep.problem import Problem
from dnnsep.weights import integer_data
from tests.codegen.conftest import SETTING_OF
from tests.codegen.running import run_alone

_EXPAND = Problem.parse("g1mb1ic24oc144ih56kh1_act:relu6")
_REST = Problem.parse("mb1ic144oc24ih56kh3ph1_act:relu6,none")


@pytest.mark.parametrize("setting", SETTING_OF.values(), ids=lambda s: "-".join(s.values()))
def test_random_cascades(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.cascades", setting, seed=1, count=8)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTING_OF.values(), ids=lambda s: "-".join(s.values()))
def test_many_random_cascades(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.cascades", setting, seed=2, count=60)


def _step(problem: Problem, extras: Extras | None = None) -> LayerStep:
    isa = this_isa()
    plan = next(iter(all_plans(problem, isa, 1, this_caches())))
    packed = Packing(layer_of(problem, isa), plan.vectors).pack(integer_data(problem)[0])
    return LayerStep(problem, plan, packed, extras or Extras())


def _chain(*steps: Step) -> list[Member]:
    """Returns steps of which each reads what the one before it writes."""
    return [
        Member(step, {"x" if isinstance(step, LayerStep) else "x0": number - 1} if number else {})
        for number, step in enumerate(steps)
    ]


def _made(band: int, parts: int = 1, room: int = 0) -> CascadeStep:
    return choose.cascade(_chain(_step(_EXPAND), _step(_REST)), Cut(parts, band, room))


@pytest.mark.parametrize(
    ("parts", "band", "room"), [(1, 56, 0), (2, 112, 1 << 17), (3, 10_000, 1 << 20)]
)
def test_each_piece_is_made_once_but_for_what_parts_share(parts: int, band: int, room: int) -> None:
    cascade = _made(band, parts, room)
    made = cascade.schedule
    last = [run for part in made.parts for run in part if isinstance(run, Run) and run.link == 1]
    pieces = len(cascade.links[1].starts) - 1
    assert [piece for run in last for piece in range(run.first, run.end)] == list(range(pieces))
    for part in made.parts:
        first = [run for run in part if isinstance(run, Run) and run.link == 0]
        pieces_of_first = [piece for run in first for piece in range(run.first, run.end)]
        assert pieces_of_first == list(range(pieces_of_first[0], pieces_of_first[-1] + 1))
        for move in (call for call in part if isinstance(call, Move)):
            assert 0 <= move.target < move.source
            assert move.source + move.bytes <= made.bytes


def test_rolling_buffers_are_as_small_as_asked_for() -> None:
    row = 56 * 144 * 4
    assert _made(56).schedule.bytes <= 4 * row
    whole = _made(448, room=1 << 30).schedule
    assert whole.bytes == 56 * row
    assert not any(isinstance(call, Move) for call in whole.parts[0])


def test_an_image_is_whole_before_it_is_scaled() -> None:
    """Of squeeze and excitation: the image's rolling buffer holds all of it, and is used again for
    the next one."""
    depthwise = Problem.parse("g96mb4ic96oc96ih14kh3ph1_act:silu")
    special = PixelReduction(pixels(0), "mean", 96, "f32", this_isa())
    squeeze = Problem.parse("g1mb4ic96oc4ih1kh1_act:silu")
    excite = Problem.parse("g1mb4ic4oc96ih1kh1_act:sigmoid")
    project = Problem.parse("g1mb4ic96oc24ih14kh1")
    members = [
        Member(_step(depthwise)),
        Member(PixelReductionStep(special, 4, 196, 96, 96, 2), {"x0": 0}),
        Member(_step(squeeze), {"x": 1}),
        Member(_step(excite), {"x": 2}),
        Member(_step(project, Extras(scale=True)), {"x": 0, "scale": 3}),
    ]
    assert "all pixels" not in choose.why_not_measured(members, 2)
    assert "all pixels" in choose.why_not_measured(members, 8)
    made = choose.cascade(members, Cut(2, 28, 0))
    assert made.by_image
    assert made.images == 4
    one, other = ([r for r in part if isinstance(r, Run)] for part in made.schedule.parts)
    assert len(one) == len(other)
    assert [run.link for run in one if run.link] == [1, 2, 3, 4] * 2
    assert made.schedule.bytes == 196 * 96 * 4 + 2 * 384 + 64


def test_a_gate_is_read_whole_by_each_pixel() -> None:
    """One image times what a layer makes of one pixel: the other pixels read that, too."""
    gate = _step(Problem.parse("g1mb1ic6oc96ih1kh1_act:sigmoid"))
    special = Rowwise(pixels(0) * operand(1, "channels"), 96, "f32", this_isa())
    gated = RowwiseStep(special, 1, 60, (96, 96), 96, 2)
    made = CascadeStep([Member(gate), Member(gated, {"x1": 0})], Cut(2, 1, 0))
    assert made.links[1].read("x0", 1, 2) == range(special.together, 2 * special.together)
    assert made.links[1].read("x1", 1, 2) == range(1)
    for part in made.schedule.parts:
        assert sum(isinstance(run, Run) and run.link == 0 for run in part) == 1


def test_what_cannot_be_a_cascade_says_why() -> None:
    plain, rest = _step(_EXPAND), _step(_REST)
    wide = _step(_EXPAND, Extras(y_pitch=200))
    for members, reason in (
        (_chain(wide, rest), "pitch"),
        (_chain(rest, rest), "is written and"),
        ([Member(plain), Member(rest, {"x": 1})], "before it"),
        ([Member(plain), Member(rest, {"residual": 0})], "no operand"),
    ):
        with pytest.raises(ValueError, match=reason):
            CascadeStep(members, Cut(1, 1, 0))
    assert not choose.why_not_measured(_chain(plain, rest), 2)
    assert "is written and" in choose.why_not_measured(_chain(rest, rest), 2)


def test_what_may_leave_the_caches_is_worth_a_look() -> None:
    wide = _chain(_step(_EXPAND), _step(_REST))
    assert choose.is_worth_a_look(wide, 1)
    assert not choose.is_worth_a_look(wide, 1 << 20)


def test_cuts_fit_the_second_cache_and_differ() -> None:
    members = _chain(_step(_EXPAND), _step(_REST))
    schedules = [choose.cascade(members, cut).schedule for cut in choose.cuts(members, 2)]
    assert schedules
    assert all(made.bytes <= this_caches().l2 for made in schedules)
    assert all(one != other for one, other in combinations(schedules, 2))


def test_a_verdict_is_kept_as_it_is() -> None:
    for verdict in (choose.Verdict(), choose.Verdict(Cut(2, 8, 4096), 1.5, 0.25)):
        assert choose.Verdict.of_json(verdict.as_json()) == verdict
    assert choose.Verdict(Cut(2, 8, 4096), 1.25, 1.0).gain == pytest.approx(0.2)
    assert choose.Verdict(None, 1.25, 1.0).gain == 0


def test_nothing_is_measured_where_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    members = _chain(_step(_EXPAND), _step(_REST))
    monkeypatch.setattr(choose, "measure", lambda *_: pytest.fail("measured"))
    assert choose.verdict_on(members, 2, tune=False).cut is None


def test_measuring_says_how_many_times_as_fast() -> None:
    members = _chain(_step(_EXPAND), _step(_REST))
    verdict = choose.verdict_on(members, 1)
    if verdict.ratio:  # else the machine was too busy to tell
        assert verdict.seconds > 0
        assert (verdict.cut is None) or verdict.ratio > 1
    assert choose.verdict_on(members, 1) == verdict
    assert np.isfinite(verdict.gain)


@pytest.mark.parametrize(
    ("rounds", "settled"),
    [
        ([(1.0, 0.9)] * 6, True),  # faster in each round
        ([(1.0, 1.01)] * 6, True),  # slower
        ([(1.0, 0.9)] * 4 + [(1.0, 1.0)] * 2, False),  # in the median, but in too few rounds
        ([(1.0, 0.9), (1.5, 1.4)] * 3, False),  # others use the machine
    ],
)
def test_it_is_measured_again_until_it_is_known(
    rounds: list[tuple[float, ...]], settled: bool
) -> None:
    assert choose.is_settled(Turns(tuple(rounds))) == settled
