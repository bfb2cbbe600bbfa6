"""``dnnsep tune``, with times that are made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from dnnsep.cli import app
from dnnsep.codegen import tuner
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.tuner import Question
from dnnsep.codegen.weigh import all_plans, this_caches
from dnnsep.host import allocator, cachefiles
from dnnsep.host.turns import Call, Turns
from dnnsep.problem import Problem
from dnnsep.sweep import tune as tuning
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.tune import Behind, Tuned, tune

PROBLEM = Problem.parse("ic32oc64ih28kh3ph1")


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is kept and what is pinned is no other test's."""
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path))
    monkeypatch.setattr(tuner, "_answers", {})
    monkeypatch.setattr(tuning, "keep_on", lambda cpus: True)
    monkeypatch.setattr(tuning, "pin_workers", lambda cpus, call: None)
    monkeypatch.setattr(allocator, "keep_pages", lambda: True)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives each plan a time in microseconds, 100 if no other, and the rounds a factor."""

    def take(times: dict[Plan, float], factors: Sequence[float] = (1.0,) * 8) -> None:
        plan_of: dict[Call, Plan] = {}
        real = tuning._checked

        def checked(problem: Problem, plan: Plan, data: CheckData) -> Call:
            call = real(problem, plan, data)
            plan_of[call] = plan
            return call

        def turns(calls: list[Call], rounds: int, seconds: float) -> Turns:
            row = [times.get(plan_of[call], 100) / 1e6 for call in calls]
            return Turns(tuple(tuple(factor * time for time in row) for factor in factors))

        monkeypatch.setattr(tuning, "_checked", checked)
        monkeypatch.setattr(tuning, "take_turns", turns)

    return take


def _plans() -> list[Plan]:
    """Returns all plans, the model's choice first and those that are no candidates last."""
    first = tuner.candidates(_question())
    return list(dict.fromkeys([*first, *all_plans(PROBLEM, this_isa(), 2, this_caches())]))


def _question() -> Question:
    return Question(PROBLEM, this_isa(), 2)


def _tuned(every: bool = False) -> Tuned:
    return tune(PROBLEM, [0, 0], every, lambda text: None)


def _behind(behind: Behind | None) -> tuple[Plan, float]:
    assert behind is not None
    return behind.plan, round(behind.share, 3)


def test_the_fastest_candidate_is_kept(taking: Callable[..., None]) -> None:
    plans = _plans()
    taking({plans[2]: 90, plans[-1]: 10})
    tuned = _tuned()
    assert tuned.best == plans[2] == _question().kept
    assert list(tuned.times) == tuner.candidates(_question())
    assert tuned.gain == pytest.approx(100 / 90)
    assert (tuned.default, tuned.model) == (None, None)


def test_with_all_plans_the_default_and_the_model_are_behind(
    taking: Callable[..., None],
) -> None:
    plans = _plans()
    assert len(plans) > len(tuner.candidates(_question()))
    _question().keep(plans[1])
    taking({plans[1]: 88, plans[-1]: 80})
    tuned = _tuned(every=True)
    assert set(tuned.times) == set(plans)
    assert tuned.best == plans[-1] == _question().kept
    assert _behind(tuned.default) == (plans[1], 0.1)
    assert _behind(tuned.model) == (plans[0], 0.25)


def test_a_little_faster_is_not_the_best_and_yet_ahead(taking: Callable[..., None]) -> None:
    plans = _plans()
    taking({plans[-1]: 99.5})
    tuned = _tuned(every=True)
    assert tuned.best == plans[0] == _question().kept
    assert _behind(tuned.default) == _behind(tuned.model) == (plans[0], 0.005)


def test_nothing_is_kept_of_a_busy_machine(taking: Callable[..., None]) -> None:
    plans = _plans()
    _question().keep(plans[1])
    taking({plans[2]: 50}, [1.0, 1.5] * 4)
    assert not _tuned().kept
    assert _question().kept == plans[1]


def test_a_wrong_plan_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckData, "verdict", lambda self, y: (False, "all wrong"))
    with pytest.raises(ValueError, match="all wrong"):
        _tuned()
    assert _question().kept is None


def _run(
    monkeypatch: pytest.MonkeyPatch, found: Sequence[Tuned | Exception | type], *options: str
) -> Result:
    answers = iter(found)

    def answer(problem: Problem, cpus: list[int], every: bool, step: object) -> Tuned:
        if isinstance(tuned := next(answers), Tuned):
            return tuned
        raise tuned

    monkeypatch.setattr(tuning, "tune", answer)
    problems = [f"ic32oc{8 * number}ih28kh3ph1" for number in range(1, len(found) + 1)]
    return CliRunner().invoke(app, ["tune", *problems, "--threads", "2", *options])


def _some(default: float, model: float, kept: bool = True) -> Tuned:
    first, second, *_ = _plans()
    times = {first: 100 * (1 + model), second: 100.0}
    return Tuned(times, second, kept, Behind(second, default), Behind(first, model))


def test_the_command_sums_up_how_far_plans_are_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [_some(0.0, 0.21), _some(0.0201, 0.0), _some(3.0, 3.0, kept=False)]
    done = _run(monkeypatch, found, "--all")
    assert done.exit_code == 0
    first, _, third, last = done.stdout.splitlines()
    assert "1.21 times as fast as the model's choice, of 2 plans" in first
    assert "is 21.0% behind the fastest" in first
    assert "not kept, the machine was not quiet" in third
    assert last == (
        "2 of 3 problems measured on a quiet machine; the default is 1.0% behind the fastest plan "
        "(geometric mean), 2.0% at worst; the model is 10.0% behind the fastest plan (geometric "
        "mean), 21.0% at worst"
    )
    lines = [
        json.loads(line) for line in _run(monkeypatch, found, "--all", "--json").stdout.splitlines()
    ]
    assert lines[1]["default"]["behind"] == 0.0201
    assert lines[-1]["behind"]["model"] == {"worst": 0.21, "geomean": 0.1}


def test_what_was_found_before_ctrl_c_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _run(
        monkeypatch, [_some(0, 0.1), _some(0, 0.1), KeyboardInterrupt, _some(0, 0)], "--all"
    )
    assert done.exit_code == 130
    assert [line[:6] for line in done.stdout.splitlines()] == ["mb1ic3", "mb1ic3", "2 of 2"]
    assert "stopped: the plans found before are kept" in done.stderr


def test_a_wrong_result_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _run(monkeypatch, [_some(0, 0), ValueError("a plan is wrong")])
    assert done.exit_code == 1
    assert "dnnsep: a plan is wrong" in done.stderr
