"""How often verdicts err on made-up sweeps, on a quiet machine and beside heavy other work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from dnnsep.measure.stats import Control, Round, Stats
from dnnsep.report.compare import Comparison, Verdict, compare
from dnnsep.sweep.results import Record, Results
from tests.sweep.samples import QUIET, rounds_of

_CASES = 200
_ROUNDS, _CALLS = 4, 3
_CALLED = (Verdict.SLOWER, Verdict.FASTER)


@dataclass(frozen=True)
class _Run:
    """What a sweep has of noise.

    ``factors`` (cases, visits, rounds) multiply the true times, ``disturbed`` of the same shape
    says where the controls show it, and ``warned`` that the sweep saw other processes.
    """

    factors: np.ndarray
    disturbed: np.ndarray
    warned: bool


_Noise = Callable[[np.random.Generator, int], _Run]


def _quiet(rng: np.random.Generator, visits: int) -> _Run:
    """Visits differ by 1 %, rounds by 0.5 %; a visit in 50 has an unlucky process."""
    shape = (_CASES, visits, _ROUNDS)
    logs = rng.normal(0, 0.01, (*shape[:2], 1)) + rng.normal(0, 0.005, shape)
    logs += (rng.random((*shape[:2], 1)) < 0.02) * rng.uniform(0.02, 0.2, (*shape[:2], 1))
    return _Run(np.exp(logs), rng.random(shape) < 0.02, warned=False)


def _loaded(rng: np.random.Generator, visits: int) -> _Run:
    """Everything at once, and no control shows more than half of it.

    The run as a whole and each of its cases are off by some per cent, from visit to visit the
    machine drifts, visits have heavy tails, and bursts of others make rounds up to 50 times as
    long.
    """
    shape = (_CASES, visits, _ROUNDS)
    case = 0.02 * rng.standard_t(4, (_CASES, 1, 1))
    drift = np.cumsum(rng.normal(0, 0.02, visits))[None, :, None]
    tails = 0.03 * np.abs(rng.standard_t(2, (*shape[:2], 1)))
    logs = rng.normal(0, 0.04) + case + drift + tails + rng.normal(0, 0.01, shape)
    visit_hit = rng.random((*shape[:2], 1)) < 0.4
    hit = visit_hit & (rng.random(shape) < 0.7)
    logs = logs + hit * np.log(50) * rng.random(shape) ** 2
    return _Run(np.exp(logs), hit & (rng.random(shape) < 0.5), warned=True)


def _bursts(rng: np.random.Generator, visits: int) -> _Run:
    """A case is hit on all visits of one run or on none, by up to 50 times, and seldom seen."""
    quiet = _quiet(rng, visits)
    shape = quiet.factors.shape
    hit = (rng.random((_CASES, 1, 1)) < 0.1) & (rng.random(shape) < 0.9)
    factors = quiet.factors * np.where(hit, 50 ** rng.random(shape), 1)
    return _Run(factors, hit & (rng.random(shape) < 0.3), warned=True)


_TIME = Stats.of(rounds_of([[100.0]]))  # compare() asks only whether there is one
_BUSY = Control(busy_us=2 * QUIET.busy_us, loads_us=QUIET.loads_us, handover_ns=25)


def _results(rng: np.random.Generator, noise: _Noise, visits: int, factor: float = 1) -> Results:
    run = noise(rng, visits)
    records = []
    for case, (factors, disturbed) in enumerate(zip(run.factors, run.disturbed, strict=True)):
        rounds: list[Round] = []
        for visit in range(visits):
            for times, bad in zip(factors[visit], disturbed[visit], strict=True):
                calls = 100 * factor * times * (1 + rng.exponential(0.01, _CALLS))
                rounds += rounds_of([calls.tolist()], visit, _BUSY if bad else QUIET)
        records.append(
            Record(
                problem=f"mb1ic{case + 1}oc64ih28kh3sh1ph1",
                backend="fused",
                threads=2,
                status="ok",
                flops=1_000_000,
                time=_TIME,
                rounds=rounds,
                warnings=["load: other processes used 70% of the CPUs"] if run.warned else [],
            )
        )
    return Results(title="t", fingerprint={"cpu": "a"}, settings={}, records=records)


def _compared(seed: int, noise: _Noise, visits: int, factor: float = 1) -> list[Comparison]:
    rng = np.random.default_rng(seed)
    return compare(_results(rng, noise, visits), _results(rng, noise, visits, factor))


def _count(found: list[Comparison], verdict: Verdict) -> int:
    return sum(c.verdict is verdict for c in found)


@pytest.mark.parametrize("noise", [_quiet, _loaded, _bursts])
@pytest.mark.parametrize("visits", [4, 8, 12])
def test_unchanged_code_is_called_in_at_most_one_case_of_a_hundred(
    noise: _Noise, visits: int
) -> None:
    for seed in range(2):
        called = [c for c in _compared(seed, noise, visits) if c.verdict in _CALLED]
        assert len(called) <= _CASES // 100


def test_a_quiet_machine_is_not_left_unsure() -> None:
    assert _count(_compared(0, _quiet, 8), Verdict.SAME) >= 0.98 * _CASES


@pytest.mark.parametrize(
    ("visits", "factor", "threshold", "power"),
    [(4, 1.1, 0.05, 0.85), (8, 1.1, 0.05, 0.97), (4, 1.05, 0.02, 0.75), (8, 1.05, 0.02, 0.97)],
)
def test_power_on_a_quiet_machine(
    visits: int, factor: float, threshold: float, power: float
) -> None:
    """A slow-down is found where it is twice the threshold or more.

    Of one as large as the threshold half the intervals reach below it, however many visits.
    """
    rng = np.random.default_rng(0)
    base = _results(rng, _quiet, visits)
    found = compare(base, _results(rng, _quiet, visits, factor), threshold)
    assert _count(found, Verdict.SLOWER) >= power * _CASES
    assert _count(found, Verdict.FASTER) == 0


@pytest.mark.parametrize("noise", [_loaded, _bursts])
@pytest.mark.parametrize("factor", [1.05, 1.1, 1 / 1.1, 2.0])
def test_load_turns_no_difference_round(noise: _Noise, factor: float) -> None:
    """Where a run as a whole is off by what the code has changed, a case in 100 may look the same.

    No control and no spread shows that.
    """
    opposite = Verdict.FASTER if factor > 1 else Verdict.SLOWER
    for visits in (4, 8):
        found = _compared(3, noise, visits, factor)
        assert _count(found, opposite) == 0
        if abs(np.log(factor)) > np.log(1.06):
            assert _count(found, Verdict.SAME) <= _CASES // 100
