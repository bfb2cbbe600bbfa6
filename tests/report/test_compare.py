"""Verdicts on made-up results whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dnnsep import Problem
from dnnsep.measure.stats import Control, Stats
from dnnsep.report.compare import Verdict, compare, failures, how_to_compare
from dnnsep.report.compare_table import as_dicts, as_markdown, line, summary
from dnnsep.report.load import load
from dnnsep.sweep.results import Record, Results
from tests.sweep.samples import rounds_of, small_roofs

PROBLEM = "mb1ic64oc64ih28kh3sh1ph1"


def _record(
    rng: np.random.Generator,
    median: float = 100.0,
    visits: int = 5,
    noise: float = 0.01,
    impls: tuple[str, ...] = ("convolution:brdgmm_dw",),
    backend: str = "onednn",
) -> Record:
    rounds = [
        turn
        for visit in range(visits)
        for turn in rounds_of(
            (median * rng.normal(1, noise) * rng.normal(1, 0.005, (8, 10))).tolist(), visit=visit
        )
    ]
    time = Stats.of(rounds)
    return Record(
        problem=PROBLEM,
        backend=backend,
        threads=2,
        status="ok",
        flops=1_000_000,
        impls=list(impls),
        time=time,
        gflops=1000 / time.median_us,
        roof=small_roofs(2).of(Problem.parse(PROBLEM), "hot"),
        rounds=rounds,
    )


def _results(*records: Record, cpu: str = "a") -> Results:
    roofs = {2: small_roofs(2)}
    return Results(
        title="t", fingerprint={"cpu": cpu}, settings={}, roofs=roofs, records=list(records)
    )


def _verdict(base: Record, new: Record, threshold: float = 0.05) -> Verdict:
    (comparison,) = compare(_results(base), _results(new), threshold)
    return comparison.verdict


def test_verdicts() -> None:
    rng = np.random.default_rng(0)
    base = _record(rng)
    assert _verdict(base, _record(rng)) is Verdict.SAME
    assert _verdict(base, _record(rng, 110)) is Verdict.SLOWER
    assert _verdict(base, _record(rng, 90)) is Verdict.FASTER
    assert _verdict(base, _record(rng, 110), threshold=0.2) is Verdict.SAME
    assert _verdict(base, _record(rng, 106, noise=0.08)) is Verdict.UNSURE


def test_few_visits_call_nothing_but_the_obvious() -> None:
    rng = np.random.default_rng(1)
    base = _record(rng, visits=1)
    assert _verdict(base, _record(rng, 125, visits=1)) is Verdict.UNSURE
    assert _verdict(base, _record(rng, 200, visits=1)) is Verdict.SLOWER
    assert _verdict(base, base) is Verdict.SAME


def test_only_rounds_in_the_same_state_of_the_machine_are_compared() -> None:
    """Visits with the cores far apart are slower on both sides, and more of them on one."""
    rng = np.random.default_rng(7)
    far = Control(busy_us=400, loads_us=500, handover_ns=200)

    def with_far(visits: int) -> Record:
        near = _record(rng, visits=6)
        rounds = [*near.rounds]
        for visit in range(6, 6 + visits):
            rounds += rounds_of([[130.0]] * 8, visit, far)
        return near.model_copy(update={"rounds": rounds})

    assert _verdict(with_far(1), with_far(20)) is Verdict.SAME
    only_far = _record(rng, 130)
    only_far = only_far.model_copy(
        update={
            "rounds": [r.model_copy(update={"before": far, "after": far}) for r in only_far.rounds]
        }
    )
    (comparison,) = compare(_results(_record(rng)), _results(only_far))
    assert comparison.verdict is Verdict.UNSURE
    assert "a quiet machine in the same state" in comparison.reason


def test_error_rates() -> None:
    """With 2 % of noise between visits: nothing called without a change, 10 % nearly always."""
    rng = np.random.default_rng(2)
    unchanged = [_verdict(_record(rng, noise=0.02), _record(rng, noise=0.02)) for _ in range(200)]
    slower = [_verdict(_record(rng, noise=0.02), _record(rng, 110, noise=0.02)) for _ in range(200)]
    assert unchanged.count(Verdict.SLOWER) + unchanged.count(Verdict.FASTER) <= 2
    assert slower.count(Verdict.SLOWER) >= 180
    assert Verdict.FASTER not in slower


def test_another_kernel_is_flagged_whatever_the_time() -> None:
    rng = np.random.default_rng(3)
    base, new = _record(rng), _record(rng, impls=("convolution:jit_dw:avx2",))
    (comparison,) = compare(_results(base), _results(new))
    assert comparison.verdict is Verdict.SAME
    assert comparison.impls == (["convolution:brdgmm_dw"], ["convolution:jit_dw:avx2"])
    assert failures([comparison], ["slower"]) == []
    assert failures([comparison], ["impl-changed"]) == [comparison]
    assert "brdgmm_dw -> jit_dw:avx2" in line(comparison)
    assert summary([comparison]) == "1 cases: 1 same; 1 impl-changed"


def test_records_without_figures() -> None:
    rng = np.random.default_rng(4)
    good = _record(rng)
    none: dict[str, object] = {"time": None, "gflops": None, "roof": None, "rounds": []}
    wrong = good.model_copy(update={"status": "incorrect", "reason": "3 outputs", **none})
    refused = good.model_copy(update={"status": "refused", "reason": "no kernel", **none})
    other = _record(rng, backend="eager")
    assert _verdict(good, wrong) is Verdict.INCORRECT
    assert _verdict(good, refused) is Verdict.FAILED
    assert _verdict(refused, refused) is Verdict.SAME
    assert _verdict(refused, good) is Verdict.FIXED
    found = compare(_results(good), _results(other))
    assert [c.verdict for c in found] == [Verdict.NEW, Verdict.MISSING]
    assert [c.verdict for c in failures(found, ["missing"])] == [Verdict.MISSING]


def test_machines_are_compared_by_their_roofs() -> None:
    rng = np.random.default_rng(5)
    base, new = _record(rng), _record(rng, 50)
    assert new.roof is not None
    new = new.model_copy(
        update={"roof": new.roof.model_copy(update={"gflops": 2 * new.roof.gflops})}
    )
    here, there = _results(base), _results(new, cpu="b")
    assert how_to_compare(here, here) == "time"
    assert how_to_compare(here, there) == "roof"
    assert how_to_compare(here, there, "time") == "time"
    assert compare(here, there, how="roof")[0].verdict is Verdict.SAME
    assert compare(here, there, how="time")[0].verdict is Verdict.FASTER
    assert base.roof is not None
    low = base.model_copy(update={"roof": base.roof.model_copy(update={"gflops": 1.0})})
    (comparison,) = compare(_results(low), there, how="roof")
    assert comparison.verdict is Verdict.UNSURE
    assert "no roof, or one that it exceeds" in comparison.reason
    assert compare(_results(low), there, how="time")[0].verdict is Verdict.FASTER
    without = here.model_copy(update={"roofs": {}})
    with pytest.raises(ValueError, match="needs results with measured roofs"):
        how_to_compare(without, there)


def test_fail_on_is_checked() -> None:
    with pytest.raises(ValueError, match="fail-on 'slow': must be one of slower, faster"):
        failures([], ["slow"])


def test_formats() -> None:
    rng = np.random.default_rng(6)
    found = compare(_results(_record(rng)), _results(_record(rng, 120)))
    (entry,) = as_dicts(found)
    assert (entry["problem"], entry["verdict"]) == (PROBLEM, "slower")
    assert json.loads(json.dumps(entry)) == entry
    assert as_markdown(found).splitlines()[2].count("|") == 8
    assert line(found[0]).startswith("SLOWER 1.")


def _benchmark(visit: int, seconds: float) -> dict[str, object]:
    control = {"busy_us": 400.0, "loads_us": 500.0, "handover_ns": None}
    info = {
        "problem": PROBLEM, "name": "layer", "backend": "onednn", "threads": 2, "visit": visit,
        "before": control, "after": control, "impls": [], "flops": 1_000_000,
    }  # fmt: skip
    return {"extra_info": info, "stats": {"data": [seconds, seconds, seconds]}}


def test_reads_what_pytest_benchmark_wrote(tmp_path: Path) -> None:
    machine = {"fingerprint": {"cpu": "a"}, "roofs": [small_roofs(2).model_dump()]}
    entries = [_benchmark(visit, 1e-4 + visit * 1e-6) for visit in range(5)]
    path = tmp_path / "perf.json"
    path.write_text(json.dumps({"machine_info": {"dnnsep": machine}, "benchmarks": entries}))
    (record,) = load(path).records
    assert record.visits == 5
    assert record.time is not None
    assert record.time.median_us == pytest.approx(102)
    assert record.gflops == pytest.approx(1000 / 102)
    assert record.roof is not None
    path.write_text(json.dumps({"machine_info": {}, "benchmarks": entries}))
    with pytest.raises(ValueError, match=r"perf\.json: not written by perf/"):
        load(path)
    path.write_text("[")
    with pytest.raises(ValueError, match=r"perf\.json: not JSON"):
        load(path)
