"""Which backend auto takes, and why, with times that are made up where they decide anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dnnsep
from dnnsep import Problem, SeparableConv2d, get_backend
from dnnsep.backends import auto
from dnnsep.backends.base import Verdict
from dnnsep.backends.eager import EagerBackend
from dnnsep.backends.executor import Executor, Stage
from dnnsep.codegen import tuner
from dnnsep.graph.optimize import what_ran
from dnnsep.host import cachefiles, turns
from dnnsep.host.turns import Call, Turns, are_slowed
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.verbose import onednn_log
from dnnsep.weights import Weights, random_data
from tests.conftest import BACKENDS_UNDER_TEST

PROBLEM = Problem.parse("ic16oc8ih6kh3ph1")
QUIET, BUSY = (1.0, 1.0, 1.0, 1.0), (1.0, 1.3, 1.3, 1.0)


@pytest.fixture(autouse=True)
def _tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path))
    monkeypatch.setenv(tuner.VARIABLE, "1")
    monkeypatch.setattr(tuner, "_answers", {})
    monkeypatch.setattr(auto, "_choices", {})


class Times:
    """Stands for the clock: the backends after the first take so many times its time."""

    def __init__(self, shares: Sequence[float], first: Sequence[float]) -> None:
        self.shares, self.first, self.asked = shares, first, 0

    def __call__(self, calls: Sequence[Call], seconds: float) -> Turns:
        self.asked += 1
        shares = [*self.shares, *[2.0] * (len(calls) - 1 - len(self.shares))]
        return Turns(tuple((t, *(t * share for share in shares)) for t in self.first))


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Times]:
    def take(*shares: float, first: Sequence[float] = QUIET) -> Times:
        times = Times(shares, first)
        monkeypatch.setattr(turns, "short_turns", times)
        monkeypatch.setattr(turns, "affordable", lambda call, seconds: 100)
        return times

    return take


@dataclass
class Engine:
    name: str
    able: bool = True
    asked: bool = False
    prepared: list[Problem] = field(default_factory=list)

    def available(self) -> Verdict:
        return Verdict(True, "always")

    def supports(self, problem: Problem) -> Verdict:
        self.asked = True
        return Verdict(self.able, f"{self.name} was asked")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        self.prepared.append(problem)
        return Executor(self.name, problem, [Stage("all", lambda x: x)])


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    found = [Engine("first"), Engine("second"), Engine("third")]
    monkeypatch.setattr(auto, "CANDIDATES", (*found, EagerBackend()))
    return found


def _prepared() -> Executor:
    return get_backend("auto").prepare(PROBLEM, random_data(PROBLEM)[0])


@pytest.mark.parametrize(
    ("shares", "why"),
    [
        ((1.32, 1.5), "runs on first: measured 1.32 times as fast as second"),
        ((1.5, 1.2), "runs on first: measured 1.20 times as fast as third"),
        ((0.99, 1.2), "runs on first: second was measured just 1.01 times as fast"),
        ((0.8, 0.9), "runs on second: first was measured 1.25 times slower"),
        ((0.9, 0.8), "runs on third: first was measured 1.25 times slower"),
    ],
)
def test_the_fastest_is_taken_and_kept(
    engines: list[Engine], taking: Callable[..., Times], shares: tuple[float, ...], why: str
) -> None:
    times = taking(*shares)
    executor = _prepared()
    assert executor.why == why
    assert executor.why.startswith(f"runs on {executor.backend}: ")
    auto._choices.clear()  # another process
    again = _prepared()
    assert (again.backend, again.why) == (executor.backend, executor.why)
    assert times.asked == 1
    assert sorted(len(engine.prepared) for engine in engines) == [1, 1, 2]


def test_other_threads_are_measured_apart(
    engines: list[Engine], taking: Callable[..., Times]
) -> None:
    times, before = taking(0.8), torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            _prepared()
    finally:
        torch.set_num_threads(before)
    assert times.asked == 2


@pytest.mark.parametrize(
    ("share", "why"),
    [
        (0.9, "runs on first: by rule, the machine was not quiet"),
        (
            0.5,
            "runs on second: first was measured 2.00 times slower, while the machine was not quiet",
        ),
    ],
)
def test_a_busy_machine_decides_nothing_for_later(
    engines: list[Engine], taking: Callable[..., Times], share: float, why: str
) -> None:
    times = taking(share, first=BUSY)
    assert _prepared().why == _prepared().why == why
    assert times.asked == 1
    auto._choices.clear()
    _prepared()
    assert times.asked == 2


def test_without_measuring_the_rule_decides(
    engines: list[Engine], taking: Callable[..., Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = taking(0.5)
    monkeypatch.setenv(tuner.VARIABLE, "0")
    assert _prepared().why == "runs on first: by rule, DNNSEP_TUNE=0"
    monkeypatch.setenv(tuner.VARIABLE, "1")
    untuned = auto.AutoBackend().fastest(
        PROBLEM, lambda backend: backend.prepare(PROBLEM, Weights()), tune=False
    )
    assert untuned.why == "runs on first: by rule, tuning is off"
    assert times.asked == 0
    monkeypatch.setenv(tuner.VARIABLE, "maybe")
    with pytest.raises(ValueError, match="DNNSEP_TUNE='maybe': must be 0 or 1"):
        _prepared()


def test_what_is_clear_is_not_measured(engines: list[Engine], taking: Callable[..., Times]) -> None:
    times = taking(0.5)
    engines[0].able = engines[2].able = False
    assert _prepared().why == "runs on second: no other one is there that runs it"
    engines[1].able = False
    assert _prepared().backend == "eager"
    assert times.asked == 0


def test_what_takes_too_long_is_not_measured(
    engines: list[Engine], taking: Callable[..., Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = taking(0.5)
    monkeypatch.setattr(turns, "affordable", lambda call, seconds: 2)  # there are three
    assert _prepared().why == "runs on first: by rule, it takes too long to be measured"
    assert times.asked == 0


def test_supports_prepares_nothing(engines: list[Engine], taking: Callable[..., Times]) -> None:
    taking(0.5)
    reason = get_backend("auto").supports(PROBLEM).reason
    assert reason == "runs on first or what is measured to be faster"
    assert not any(engine.prepared for engine in engines)


def test_others_are_not_asked_where_they_are_not_compared(
    engines: list[Engine], taking: Callable[..., Times], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking one imports its framework, which changes the user's process."""
    taking(1.5)
    _prepared()
    auto._choices.clear()
    for engine in engines[1:]:
        engine.asked = False
    monkeypatch.setenv(tuner.VARIABLE, "0")
    _prepared()
    monkeypatch.setenv(tuner.VARIABLE, "1")
    assert _prepared().backend == "first"  # as was kept
    assert get_backend("auto").supports(PROBLEM)
    assert not any(engine.asked for engine in engines[1:])


def test_nothing_is_measured_beside_onednns_log(
    engines: list[Engine], taking: Callable[..., Times]
) -> None:
    times = taking(0.5)
    with onednn_log():
        assert are_slowed()
        assert _prepared().backend == "first"
    assert times.asked == 0
    assert _prepared().backend == "second"
    with onednn_log():
        assert _prepared().backend == "second"


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"backend": "fourth", "why": "x"}', b'{"backend": "first"}']
)
def test_a_kept_choice_that_is_none_is_not_taken(
    engines: list[Engine], taking: Callable[..., Times], content: bytes
) -> None:
    times = taking(0.5)
    cachefiles.save("auto", auto._key(PROBLEM), content)
    assert _prepared().backend == "second"
    assert times.asked == 1


def test_measuring_gives_right_results() -> None:
    problem = Problem.parse("ic16oc40ih14kh3ph1")
    data, before = CheckData.exact(problem), torch.get_num_threads()
    executor = get_backend("auto").prepare(problem, data.weights)
    assert executor.why.startswith(f"runs on {executor.backend}: ")
    assert torch.get_num_threads() == before
    x = torch.from_numpy(data.x).contiguous(memory_format=torch.channels_last)
    assert data.verdict(executor(x).numpy())[0]


class Residual(torch.nn.Module):
    def __init__(self, layer: SeparableConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, x)
        return y


def test_separable_layers_go_by_it_but_with_a_residual(taking: Callable[..., Times]) -> None:
    taking(0.5)
    layer, x = SeparableConv2d(16, 16, 3, padding=1).eval(), torch.randn(1, 16, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.plain(x, None), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer(x, x), layer.plain(x, x), rtol=1e-4, atol=1e-4)
    plain, with_residual = (ready.runs_on for ready in layer._ready.made.values())
    assert plain.startswith(BACKENDS_UNDER_TEST[0])
    assert with_residual.startswith("fused")
    layer.tune = False
    with torch.no_grad():
        layer(x[:, :, :6])
    assert list(layer.runs_on.values())[-1].startswith("fused")


def test_chains_stay_on_fused(taking: Callable[..., Times]) -> None:
    times = taking(0.5)
    layers = [
        torch.nn.Conv2d(16, 16, 3, padding=1, groups=16),
        torch.nn.Conv2d(16, 16, 1),
        torch.nn.Conv2d(16, 8, 1),
    ]
    x = torch.randn(1, 16, 12, 12)
    optimized = dnnsep.optimize(torch.nn.Sequential(*layers).eval(), x)
    assert [text.split(":")[0] for text in what_ran(optimized)] == ["2 layers by fused"]
    assert times.asked == 0
