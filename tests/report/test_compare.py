"""Verdicts on made-up results whose truth is known."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dnnsep import Problem
from dnnsep.measure.stats import Control, Stats
from dnnsep.report.compare import Verdict, compare, failures, how_to_compare
from dnnsep.report.compare_table import as_dicts, as_markdown, as_rich, line, summary
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


def test_another_kernel_is_flagged_whatever_the_time() -> None:
    rng = np.random.default_rng(3)
    base, new = _record(rng), _record(rng, impls=("convolution:jit_dw:avx2",))
    (comparison,) = compare(_results(base), _results(new))
    assert comparison.verdict is Verdict.SAME
    assert comparison.impls == (["convolution:brdgmm_dw"], ["convolution:jit_dw:avx2"])
    assert failures([comparison], ["slower"]) == []
    assert failures([comparison], ["impl-changed"]) == [comparison]
    assert "brdgmm_dw -> jit_dw:avx2" in line(comparison)
    counts, note = summary([comparison]).splitlines()
    assert counts == "1 cases: 1 same; 1 impl-changed"
    assert note == "[1] IMPL-CHANGED: brdgmm_dw -> jit_dw:avx2"


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


def test_reasons_stand_once_below_a_table_of_80_columns() -> None:
    rng = np.random.default_rng(8)
    problems = [f"mb16ic1024oc1024ih{size}kh3sh1ph1_act:relu,relu" for size in (7, 14, 28)]
    base, new = (
        [_record(rng, visits=1).model_copy(update={"problem": problem}) for problem in problems]
        for _ in range(2)
    )
    new = [
        record.model_copy(update={"rounds": rounds_of([[120.0], [150.0], [181.0], [210.0]] * 2)})
        for record in new
    ]
    found = compare(_results(*base), _results(*new))
    assert {c.verdict for c in found} == {Verdict.UNSURE}
    console = Console(width=80, file=io.StringIO())
    console.print(as_rich(found))
    shown = console.file.getvalue() + summary(found)  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("UNSURE [1]") == 3
    (reason,) = {c.reason for c in found}
    assert " ".join(shown.split()).count(reason) == 1
    assert " ".join(shown.split()).count("dnnsep ab") == 1
    assert all("dnnsep ab" in entry["advice"] for entry in as_dicts(found))
    assert as_markdown(found).count(reason) == 1


def test_reasons_say_what_is_wrong() -> None:
    """A wide interval, visits that scatter, other work, rounds that disagree, and chance."""

    def reason(base: Record, new: Record) -> str:
        (comparison,) = compare(_results(base), _results(new))
        assert comparison.verdict is Verdict.UNSURE
        assert comparison.advice
        return comparison.reason

    rng = np.random.default_rng(9)
    base = _record(rng)
    warned = {"warnings": ["load: other processes used 70% of the CPUs"]}
    wide = _record(rng, 150, noise=0.4)
    assert reason(base, wide).startswith("the visits disagree: the interval is wider")
    loaded = reason(base, wide.model_copy(update=warned))
    assert loaded.startswith("load: the interval is wider")
    slower = _record(rng, 110)
    assert _verdict(base, slower) is Verdict.SLOWER
    assert reason(base.model_copy(update=warned), slower.model_copy(update=warned)) == (
        "load: the interval is neither within 2.5 % nor beyond 15 %"
    )
    assert reason(base, _record(rng, 105)) == "the interval reaches across 5 %"
    scattered = [turn for v in range(5) for turn in rounds_of([[100], [130], [170], [220]], v)]
    assert "rounds that agree" in reason(base, base.model_copy(update={"rounds": scattered}))


def test_p_values_are_corrected_for_the_number_of_cases() -> None:
    """Of a hundred cases one has an interval just beyond the threshold by chance."""
    rng = np.random.default_rng(10)
    problems = [f"mb1ic{number}oc64ih28kh3ph1" for number in range(1, 101)]
    base, new = (
        [_record(rng, noise=0.02).model_copy(update={"problem": problem}) for problem in problems]
        for _ in range(2)
    )
    shift = 1.085 / compare(_results(*base), _results(*new))[0].ratio  # type: ignore[operator]
    turns = [
        turn.model_copy(update={"calls_us": [shift * call for call in turn.calls_us]})
        for turn in new[0].rounds
    ]
    new[0] = new[0].model_copy(update={"rounds": turns})
    first, *others = compare(_results(*base), _results(*new))
    assert first.low is not None
    assert first.low > 1.05
    assert first.verdict is Verdict.UNSURE
    assert first.reason == "maybe by chance: not significant after correction for 100 cases"
    assert not {c.verdict for c in others} & {Verdict.SLOWER, Verdict.FASTER}


def test_formats() -> None:
    rng = np.random.default_rng(6)
    found = compare(_results(_record(rng)), _results(_record(rng, 120)))
    (entry,) = as_dicts(found)
    assert (entry["problem"], entry["verdict"]) == (PROBLEM, "slower")
    assert json.loads(json.dumps(entry)) == entry
    assert as_markdown(found).splitlines()[2].count("|") == 4
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
