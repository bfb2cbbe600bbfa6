"""Cascades give what their layers give one after the other, to the bit, however they are cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.schedule import Link, Move, Run, schedule
from dnnsep.codegen.cascade.step import CascadeStep, Cut
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.weigh import all_plans, layer_for, this_caches
from dnnsep.problem import Problem
from dnnsep.weights import integer_data
from tests.codegen.conftest import SETTING_OF
from tests.codegen.running import run_alone

_EXPAND = Problem.parse("g1mb1ic24oc144ih56kh1_act:relu6")
_REST = Problem.parse("mb1ic144oc24ih56kh3ph1_act:relu6,none")


@pytest.mark.parametrize("setting", SETTING_OF.values(), ids=lambda s: "-".join(s.values()))
def test_random_cascades(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.cascades", setting, seed=1, count=15)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTING_OF.values(), ids=lambda s: "-".join(s.values()))
def test_many_random_cascades(setting: dict[str, str]) -> None:
    run_alone("tests.codegen.cascades", setting, seed=2, count=60)


def _step(problem: Problem, extras: Extras | None = None) -> LayerStep:
    isa = this_isa()
    plan = next(iter(all_plans(problem, isa, 1, this_caches())))
    packed = Packing(layer_of(problem, isa), plan.vectors).pack(integer_data(problem)[0])
    return LayerStep(problem, plan, packed, extras or Extras())


def _links(*steps: LayerStep) -> list[Link]:
    ranged = [replace(step, plan=step.plan.by_ranges) for step in steps]
    return [Link(s.problem, layer_for(s.problem, s.plan), s.plan) for s in ranged]


@pytest.mark.parametrize(
    ("parts", "band", "room"), [(1, 4, 0), (2, 8, 1 << 17), (3, 1000, 1 << 20)]
)
def test_each_piece_is_made_once_but_for_what_parts_share(parts: int, band: int, room: int) -> None:
    links = _links(_step(_EXPAND), _step(_REST))
    made = schedule(links, parts, band, room)
    last = [run for part in made.parts for run in part if isinstance(run, Run) and run.link == 1]
    assert [piece for run in last for piece in range(run.first, run.end)] == list(
        range(links[1].plan.pieces)
    )
    for part in made.parts:
        first = [run for run in part if isinstance(run, Run) and run.link == 0]
        pieces = [piece for run in first for piece in range(run.first, run.end)]
        assert pieces == list(range(pieces[0], pieces[-1] + 1))
        for move in (call for call in part if isinstance(call, Move)):
            assert 0 <= move.target < move.source
            assert move.source + move.bytes <= made.bytes


def test_rolling_buffers_are_as_small_as_asked_for() -> None:
    links = _links(_step(_EXPAND), _step(_REST))
    row = 56 * 144 * 4
    assert schedule(links, 1, links[1].plan.pieces // 56, 0).bytes <= 4 * row
    whole = schedule(links, 1, 8, 1 << 30)
    assert whole.bytes == 56 * row
    assert not any(isinstance(call, Move) for call in whole.parts[0])


def test_what_cannot_be_a_cascade_says_why() -> None:
    plain, rest = _step(_EXPAND), _step(_REST)
    added = _step(_EXPAND, Extras(residual=True))
    wide = _step(_EXPAND, Extras(y_pitch=200))
    for layers, reason in (
        ((added, rest), "residual"),
        ((wide, rest), "pitch"),
        ((rest, rest), "is written and"),
    ):
        with pytest.raises(ValueError, match=reason):
            CascadeStep(layers, Cut(1, 1, 0))
    assert choose.fit(plain, rest)
    assert not choose.fit(rest, rest)


def test_cuts_fit_the_second_cache_and_differ() -> None:
    layers = [_step(_EXPAND), _step(_REST)]
    found = list(choose.cuts(layers, 2))
    schedules = [choose.cascade(layers, cut).schedule for cut in found]
    assert found
    assert all(made.bytes <= this_caches().l2 for made in schedules)
    assert len(set(schedules)) == len(schedules)


def test_a_verdict_is_kept_as_it_is() -> None:
    for verdict in (choose.Verdict(), choose.Verdict(Cut(2, 8, 4096), 1.5, 0.25)):
        assert choose.Verdict.of_json(verdict.as_json()) == verdict
    assert choose.Verdict(Cut(2, 8, 4096), 1.25, 1.0).gain == pytest.approx(0.2)
    assert choose.Verdict(None, 1.25, 1.0).gain == 0


def test_nothing_is_measured_where_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [_step(_EXPAND), _step(_REST)]
    monkeypatch.setattr(choose, "_measure", lambda *_: pytest.fail("measured"))
    assert choose.verdict_on(layers, 2, tune=False).cut is None


def test_measuring_says_how_many_times_as_fast() -> None:
    layers = [_step(_EXPAND), _step(_REST)]
    verdict = choose.verdict_on(layers, 1)
    if verdict.ratio:  # else the machine was too busy to tell
        assert verdict.seconds > 0
        assert (verdict.cut is None) or verdict.ratio > 1
    assert choose.verdict_on(layers, 1) == verdict
    assert np.isfinite(verdict.gain)
