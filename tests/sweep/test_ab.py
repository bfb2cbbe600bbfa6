"""Verdicts of made-up pairs: what is called, how often wrongly, and what an outlier does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from dnnsep.measure.stats import Control
from dnnsep.report.ab import (
    Estimate,
    Finding,
    Sample,
    Verdict,
    geomeans,
    judge,
    moderated,
    sample_of,
)
from dnnsep.report.ab_table import as_dict, line, summary
from dnnsep.sweep.client import Interpreter
from dnnsep.sweep.pairs import Pair, PairResults, Trial, Visit
from tests.sweep.samples import QUIET

_NOISY = Control(busy_us=400, loads_us=900, handover_ns=25)
_CALLED = (Verdict.SLOWER, Verdict.FASTER)
_VISITS = 10


def _trial(number: int, visits: Sequence[Sequence[float]] | np.ndarray, **fields: object) -> Trial:
    """A trial with these ratios, pair by pair of each visit, of a call of 100 us."""
    made = [
        Visit(
            visit=index,
            pairs=[Pair(before=QUIET, after=QUIET, base_us=100, new_us=100 * r) for r in ratios],
        )
        for index, ratios in enumerate(visits)
    ]
    known = {"name": None, "backend": "fused", "threads": 2, "cache": "hot", "visits": made}
    problem = f"mb1ic{number + 1}oc4ih8kh3sh1ph0"
    return Trial.model_validate({"problem": problem, **known, **fields})


def _results(trials: list[Trial]) -> PairResults:
    return PairResults(base="a", new="b", fingerprint={}, settings={}, trials=trials)


def _run(random: np.random.Generator, effects: Sequence[float], bias: float) -> list[Finding]:
    """A run over cases with these true changes.

    Each process is off by about ``bias`` for its whole life, more or less so from case to case; one
    in 20 is unlucky by 3 to 15 %; pairs differ by 1 %.
    """
    trials = []
    for number, effect in enumerate(effects):
        scale = bias * math.exp(0.5 * random.normal())
        visits: list[list[float]] = []
        for _ in range(_VISITS):
            luck = scale * (random.normal() - random.normal())
            if random.random() < 0.05:
                luck += random.choice([-1, 1]) * random.uniform(0.03, 0.15)
            pairs = luck + 0.01 * random.normal(size=8)
            visits.append(list((1 + effect) * np.exp(pairs)))
        trials.append(_trial(number, visits))
    return judge(_results(trials), 0.01)


@pytest.mark.parametrize("bias", [0.002, 0.005, 0.01])
def test_one_version_against_itself_is_not_called(bias: float) -> None:
    random = np.random.default_rng(1)
    found = [finding for _ in range(10) for finding in _run(random, [0.0] * 40, bias)]
    assert sum(finding.verdict in _CALLED for finding in found) <= 2  # of 400
    if bias < 0.01:
        assert sum(finding.verdict is Verdict.SAME for finding in found) > 0.7 * len(found)


@pytest.mark.parametrize(("effect", "least"), [(0.02, 0.9), (-0.02, 0.9), (0.05, 0.98)])
def test_changes_are_found(effect: float, least: float) -> None:
    random = np.random.default_rng(2)
    wanted = Verdict.SLOWER if effect > 0 else Verdict.FASTER
    changed, rest = [], []
    for _ in range(10):
        found = _run(random, [effect] * 10 + [0.0] * 30, 0.004)
        changed += found[:10]
        rest += found[10:]
    assert sum(finding.verdict is wanted for finding in changed) >= least * len(changed)
    assert sum(finding.verdict in _CALLED for finding in rest) <= 3  # of 300
    assert not any(f.verdict in _CALLED and f.verdict is not wanted for f in changed)


@pytest.mark.parametrize("cases", [1, 2, 12, 60])
def test_intervals_hold_what_they_say(cases: int) -> None:
    random, inside = np.random.default_rng(3), list[bool]()
    for _ in range(max(10, 600 // cases)):
        scales = 0.005 * np.exp(0.6 * random.normal(size=cases))
        values = [dict(enumerate(s * random.normal(size=_VISITS))) for s in scales]
        for estimate in moderated([Sample(v, 100.0) for v in values]):
            low, high = estimate.interval
            inside.append(low <= 1 <= high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_many_alike_cases_sharpen_each_other() -> None:
    random = np.random.default_rng(4)
    samples = [Sample(dict(enumerate(0.005 * random.normal(size=4))), 100.0) for _ in range(50)]
    together, alone = moderated(samples), [moderated([sample])[0] for sample in samples]

    def width(estimate: Estimate) -> float:
        low, high = estimate.interval
        return high - low

    assert np.mean([width(e) for e in together]) < 0.75 * np.mean([width(e) for e in alone])


def test_the_groups_mean_knows_what_its_visits_have_in_common() -> None:
    random = np.random.default_rng(5)
    common = 0.01 * random.normal(size=_VISITS)
    ratios = np.exp(common[:, None] + 0.001 * random.normal(size=(30, _VISITS, 1)))
    trials = [_trial(n, np.repeat(visits, 4, axis=1)) for n, visits in enumerate(ratios)]
    (mean,) = geomeans(_results(trials))
    assert (mean.group, mean.count) == ("fused f32 batch 1 threads 2", 30)
    assert mean.estimate.error > 0.5 * 0.01 / math.sqrt(_VISITS)
    assert mean.estimate.ratio == pytest.approx(math.exp(common.mean()), abs=0.005)


def test_models_are_averaged_by_dtype_and_batch() -> None:
    problems = ("net 1x3x9x9", "net bf16 1x3x9x9", "net bf16 4x3x9x9", "other bf16 4x3x9x9")
    visits = [[1.0, 1.01, 0.99, 1.0]] * 3
    trials = [_trial(0, visits, problem=text, backend="dnnsep") for text in problems]
    assert [(mean.group, mean.count) for mean in geomeans(_results(trials))] == [
        ("dnnsep f32 batch 1 threads 2", 1),
        ("dnnsep bf16 batch 1 threads 2", 1),
        ("dnnsep bf16 batch 4 threads 2", 2),
    ]


def test_pairs_of_a_machine_that_is_not_quiet_do_not_count() -> None:
    trial = _trial(0, [[1.0] * 4] * 3)
    noisy = [Pair(before=QUIET, after=_NOISY, base_us=100, new_us=150)] * 4
    loud = Visit(visit=3, pairs=noisy)
    mixed = Visit(visit=4, pairs=[*trial.visits[0].pairs, *noisy, *noisy])
    trial = trial.model_copy(update={"visits": [*trial.visits, loud, mixed]})
    sample = sample_of(trial, _results([trial]).quietest())
    assert sample is not None
    assert sample.values == {0: 0.0, 1: 0.0, 2: 0.0, 4: 0.0}
    lonely = trial.model_copy(update={"visits": [trial.visits[0], loud]})
    (finding,) = judge(_results([lonely]), 0.01)
    assert (finding.verdict, finding.estimate) == (Verdict.UNSURE, None)
    assert finding.reason == "fewer than 2 visits with a quiet machine"


def test_times_that_are_all_alike_claim_no_more_than_the_clock_shows() -> None:
    (finding,) = judge(_results([_trial(0, [[1.0] * 4] * 10)]), 0.01)
    assert finding.verdict is Verdict.SAME
    assert finding.estimate is not None
    assert finding.estimate.error > 1e-4


def test_what_was_not_measured_is_said_with_its_reason() -> None:
    refused = _trial(0, [], status="refused", reason="base: no AMX")
    changed = _trial(1, [[1.1] * 4] * 10, base_impls=["a:old"], new_impls=["a:new"])
    findings = judge(_results([refused, changed]), 0.01)
    assert [f.verdict for f in findings] == [Verdict.REFUSED, Verdict.SLOWER]
    assert [f.impl_changed for f in findings] == [False, True]
    means = geomeans(_results([refused, changed]))
    *_, last = summary(findings, means)
    assert last == "2 cases: 1 refused, 1 slower; 1 impl-changed"
    assert "SLOWER IMPL-CHANGED 1.100" in line(findings[1])
    assert line(findings[1]).endswith("; old -> new")
    found = as_dict(findings, means)
    assert found["cases"][0]["reason"] == "base: no AMX"
    assert found["cases"][0]["ratio"] is None
    assert found["cases"][1]["ratio"] == pytest.approx(1.1)
    assert found["counts"] == {"refused": 1, "slower": 1}


def test_an_interpreter_that_is_none_is_said_in_one_line() -> None:
    with pytest.raises(ValueError, match="neither a Python to run nor a checkout's folder"):
        Interpreter.parse("no/such/thing")
