"""Plans chosen by measuring, with times that are made up where they decide anything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch

from dnnsep import SeparableConv2d, get_backend
from dnnsep.backends.fused_executor import FusedExecutor
from dnnsep.backends.tensors import to_channels_last
from dnnsep.codegen import kernel, layerstep, tuner
from dnnsep.codegen.extras import PLAIN, Extras
from dnnsep.codegen.kernel import Specialization
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.layerstep import chosen_step
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.tuner import Question
from dnnsep.codegen.weigh import all_plans, close_plans, this_caches
from dnnsep.host import cachefiles
from dnnsep.host.turns import Call, Turns, seconds_spent
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.weights import random_data

PROBLEM = Problem.parse("ic32oc64ih28kh3ph1")
QUIET, BUSY = (1.0, 1.0, 1.0, 1.0), (1.0, 1.3, 1.3, 1.0)


@pytest.fixture(autouse=True)
def _tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path))
    monkeypatch.setenv(tuner.VARIABLE, "1")
    monkeypatch.setattr(tuner, "_answers", {})


class Times:
    """Stands for the clock: the plan of a number takes a share of the first one's time."""

    def __init__(self, shares: dict[int, float], first: Sequence[float] = QUIET) -> None:
        self.shares, self.first, self.asked = {0: 1.0, **shares}, first, 0
        self._of_call: dict[Call, float] = {}

    def __call__(self, calls: Sequence[Call], seconds: float) -> Turns:
        if calls[0] not in self._of_call:  # and not the best of them once more
            self.asked += 1
            self._of_call = {c: self.shares.get(number, 1.1) for number, c in enumerate(calls)}
        shares = [self._of_call[call] for call in calls]
        return Turns(tuple(tuple(t * share for share in shares) for t in self.first))


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Times]:
    def take(shares: dict[int, float], first: Sequence[float] = QUIET) -> Times:
        times = Times(shares, first)
        monkeypatch.setattr(tuner, "short_turns", times)
        monkeypatch.setattr(tuner, "affordable", lambda call, seconds: 100)
        return times

    return take


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Specialization]:
    """Lists the kernels that are asked for."""
    found: list[Specialization] = []

    def noted(special: Specialization) -> Function:
        found.append(special)
        return kernel.compiled(special)

    monkeypatch.setattr(layerstep, "compiled", noted)
    return found


def _question(threads: int = 2, extras: Extras | None = None) -> Question:
    return Question(PROBLEM, this_isa(), threads, extras or Extras())


def _packed(packing: Packing) -> np.ndarray:
    return packing.pack(random_data(PROBLEM)[0])


def _chosen(threads: int = 2, extras: Extras = PLAIN, tune: bool = True) -> Plan:
    return chosen_step(PROBLEM, _packed, threads, extras, tune).plan


def _forget() -> None:
    """What another process knows: what is kept on disk."""
    tuner._answers.clear()


@pytest.mark.parametrize(
    "text", ["ic32oc64ih112kh3ph1", "ic256oc256ih28kh3ph1", "g1ic96oc24ih56kh1"]
)
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_candidates_are_the_models_choice_and_all_sorts_of_others(text: str, threads: int) -> None:
    question = Question(Problem.parse(text), this_isa(), threads)
    found = tuner.candidates(question)
    plans = list(all_plans(question.problem, question.isa, threads, this_caches()))
    assert set(found) <= set(plans)
    assert 4 <= len(found) == len(set(found)) <= 12
    splits = {plan.channel_parts for plan in plans}
    assert {plan.channel_parts for plan in found} == splits
    assert len({plan.untiled for plan in found}) <= len(splits) + 2
    assert len({plan.tile for plan in found}) >= 3
    assert found[0] == close_plans(question.problem, question.isa, threads)[0][0]


def test_the_fastest_is_chosen_and_kept_for_later_processes(
    taking: Callable[..., Times],
) -> None:
    times = taking({3: 0.9, 4: 0.95})
    wanted = tuner.candidates(_question())[3]
    assert _chosen() == wanted
    assert times.asked == 1
    assert tuner.chosen_by(_question(), wanted) == "measured"
    _forget()
    assert _chosen() == wanted
    assert _chosen(tune=False) == wanted
    assert times.asked == 1
    assert tuner.chosen_by(_question(), wanted) == "measured"
    assert tuner.chosen_by(_question(), tuner.candidates(_question())[0]) == "by model"
    _chosen(threads=1)
    assert times.asked == 2


def test_the_models_choice_stays_where_nothing_is_faster(taking: Callable[..., Times]) -> None:
    times = taking({1: 0.995})
    by_model = tuner.candidates(_question())[0]
    assert _chosen() == by_model
    assert tuner.chosen_by(_question(), by_model) == "measured"
    _forget()
    assert _chosen() == by_model
    assert times.asked == 1


@pytest.mark.parametrize(("share", "number"), [(0.9, 0), (0.5, 2)])
def test_what_a_busy_machine_says_is_used_but_not_kept(
    taking: Callable[..., Times], share: float, number: int
) -> None:
    times = taking({2: share}, BUSY)
    plan = tuner.candidates(_question())[number]
    assert _chosen() == _chosen() == plan
    assert times.asked == 1
    assert tuner.chosen_by(_question(), plan) == ("measured" if number else "by model")
    _forget()
    assert _chosen() == plan
    assert times.asked == 2


def test_what_takes_too_long_is_left_to_the_model(
    taking: Callable[..., Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = taking({1: 0.5})
    monkeypatch.setattr(tuner, "affordable", lambda call, seconds: 1)
    by_model = tuner.candidates(_question())[0]
    assert _chosen() == by_model
    assert times.asked == 0
    assert _question().kept is None
    assert tuner.chosen_by(_question(), by_model) == "by model"


def test_no_memory_is_taken_for_what_is_large(
    taking: Callable[..., Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = taking({1: 0.5})
    monkeypatch.setattr(tuner, "_MOST_BYTES", 28 * 28 * (32 + 64) * 4 - 1)
    assert _chosen() == tuner.candidates(_question())[0]
    monkeypatch.setattr(tuner, "_answers", {})
    monkeypatch.setattr(tuner, "_MOST_BYTES", 28 * 28 * (32 + 64) * 4)
    assert _chosen() == tuner.candidates(_question())[1]
    assert times.asked == 1


def test_fewer_are_compared_where_calls_take_long(
    taking: Callable[..., Times],
    compiled: list[Specialization],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taking({1: 0.5})
    monkeypatch.setattr(tuner, "affordable", lambda call, seconds: 2)
    assert _chosen() == tuner.candidates(_question())[1]
    assert len(compiled) == 2


def test_nothing_is_measured_where_that_is_switched_off(
    taking: Callable[..., Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = taking({1: 0.5})
    by_model = tuner.candidates(_question())[0]
    assert _chosen(tune=False) == by_model
    monkeypatch.setenv(tuner.VARIABLE, "0")
    assert _chosen() == by_model
    assert times.asked == 0
    monkeypatch.setenv(tuner.VARIABLE, "")
    assert _chosen() != by_model


def test_another_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuner.VARIABLE, "yes")
    with pytest.raises(ValueError, match=r"^DNNSEP_TUNE='yes': must be 0 or 1$"):
        _chosen()
    verdict = get_backend("fused").supports(PROBLEM)
    assert not verdict
    assert verdict.reason == "DNNSEP_TUNE='yes': must be 0 or 1"


def test_a_layer_of_one_plan_is_not_measured(taking: Callable[..., Times]) -> None:
    times = taking({})
    problem = Problem.parse("g32ic32oc32ih28kh3ph1")
    executor = get_backend("fused").prepare(problem, random_data(problem)[0])
    assert times.asked == 0
    assert executor.plans()[0]["chosen"] == "the only one"


def test_a_problem_is_measured_with_its_own_extras(
    taking: Callable[..., Times], compiled: list[Specialization]
) -> None:
    """No kernel is compiled that is not used otherwise."""
    taking({1: 0.5})
    with_residual = Extras(residual=True)
    plan = _chosen(extras=with_residual)
    assert {special.extras for special in compiled} == {with_residual}
    _forget()
    assert _question(extras=with_residual).kept == plan
    assert _question().kept is None


def test_a_problem_is_measured_once_and_alone(
    taking: Callable[..., Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    times, inside, most = taking({2: 0.9}), [0], [0]

    def slow(calls: Sequence[Call], seconds: float) -> Turns:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        sleep(0.02)
        inside[0] -= 1
        return times(calls, seconds)

    monkeypatch.setattr(tuner, "short_turns", slow)
    barrier = threading.Barrier(6)

    def prepare(threads: int) -> Plan:
        barrier.wait()
        return _chosen(threads)

    with ThreadPoolExecutor(6) as pool:
        plans = list(pool.map(prepare, [1, 2, 1, 2, 1, 2]))
    assert plans == plans[:2] * 3
    assert times.asked == 2
    assert most == [1]


@pytest.mark.parametrize(
    "text", ["ic32oc64ih28kh3ph1", "g1ic40oc48ih14kh1_bf16", "linear_mb90ic64oc96"]
)
def test_measuring_changes_no_result_and_no_threads(text: str) -> None:
    problem = Problem.parse(text)
    data, before = CheckData.exact(problem), torch.get_num_threads()
    spent = seconds_spent()
    executor = get_backend("fused").prepare(problem, data.weights)
    assert isinstance(executor, FusedExecutor)
    assert seconds_spent() > spent
    assert torch.get_num_threads() == before
    question = Question(problem, this_isa(), before)
    assert executor.plan in tuner.candidates(question)
    assert executor.plans()[0]["chosen"] in ("measured", "by model")
    assert data.verdict(executor(to_channels_last(data.x, problem.dtype)).float().numpy())[0]
    spent = seconds_spent()
    get_backend("fused").prepare(problem, data.weights)
    assert seconds_spent() == spent


def test_a_scaled_input_is_measured(taking: Callable[..., Times]) -> None:
    times = taking({1: 0.5})
    problem = Problem.parse("g1ic40oc48ih14kh1")
    weights = random_data(problem)[0]
    extras = Extras(residual=True, scale=True)
    step = chosen_step(problem, lambda by: by.pack(weights), 2, extras)
    assert times.asked == 1
    assert step.extras == extras


def test_slices_are_measured_as_tensors_of_their_own(
    taking: Callable[..., Times], compiled: list[Specialization]
) -> None:
    """And share what was measured, however wide the tensors are that they are slices of."""
    times = taking({1: 0.5})
    plan = _chosen(extras=Extras(residual=True, residual_pitch=96))
    assert {special.extras for special in compiled} == {Extras(residual=True)}
    for extras in (
        Extras(residual=True),
        Extras(residual=True, x_pitch=40, y_pitch=200),
        Extras(residual=True, y_pitch=128),
    ):
        step = chosen_step(PROBLEM, _packed, 2, extras)
        assert step.plan == plan
        assert step.extras == extras
        assert tuner.step_chosen_by(step, 2) == "measured"
    assert times.asked == 1


def test_nothing_is_measured_while_torch_traces(taking: Callable[..., Times]) -> None:
    times = taking({1: 0.9})
    layer = SeparableConv2d(32, 64, 3, padding=1, backend="fused").eval()
    x = torch.randn(1, 32, 28, 28)
    with torch.no_grad():
        exported = torch.export.export(layer, (x,)).module()
        assert times.asked == 0
        y = exported(x)
        assert times.asked == 1
        torch.testing.assert_close(y, layer.plain(x, None), rtol=1e-4, atol=1e-4)
    layer.tune = False
    times = taking({1: 0.9})
    with torch.no_grad():
        torch.export.export(layer, (x[..., :20],)).module()(x[..., :20])
    assert times.asked == 0
