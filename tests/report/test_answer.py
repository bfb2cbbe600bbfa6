"""The first lines of a report: what they count, and that they claim nothing that was not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from dnnsep.measure.stats import Stats
from dnnsep.report.answer import Answer, GroupAnswer, Lead, answer_of, sentences
from dnnsep.report.html import as_html
from dnnsep.report.markdown import as_report
from dnnsep.sweep.results import Record, Results
from tests.report.samples import models_file, two_files
from tests.sweep.samples import rounds_of

_SIZES = (7, 14, 28, 56, 112, 224, 9, 11, 13)


def _record(backend: str, index: int, us: float | None, **changes: Any) -> Record:
    """A record whose interval reaches 1 % to both sides of its median."""
    problem = f"mb1ic32oc64ih{_SIZES[index]}kh3ph1"
    common: dict[str, Any] = {
        **{"problem": problem, "name": f"layer{index}", "backend": backend},
        **{"threads": 2, "flops": 1000},
    }
    if us is None:
        return Record(**common | {"status": "refused", "reason": "cannot"} | changes)
    rounds = rounds_of([[us]])
    time = Stats.of(rounds).model_copy(update={"low_us": 0.99 * us, "high_us": 1.01 * us})
    return Record(**common | {"status": "ok", "time": time, "rounds": rounds} | changes)


def _results(records: Sequence[Record], **fingerprint: Any) -> Results:
    return Results(title="t", fingerprint=fingerprint, settings={}, records=list(records))


def _timed(times: dict[str, Sequence[float | None]]) -> list[Record]:
    return [
        _record(backend, index, us)
        for backend, own in times.items()
        for index, us in enumerate(own)
    ]


def _only_group(records: Sequence[Record]) -> GroupAnswer:
    (group,) = answer_of(_results(records)).groups
    return group


def _text(answer: Answer) -> str:
    return "\n".join(line.text for line in sentences(answer))


def test_counts_lead_and_problems_behind() -> None:
    records = _timed(
        {"eager": [30, 20, 10, 8], "fused": [10, 10, 20, 8.1], "ipex": [20, 40, 40, 9]}
    )
    group = _only_group(records)
    assert (group.problems, group.compared, group.missing) == (4, 4, 0)
    assert group.fastest == {"fused": 2, "eager": 2}
    assert group.subject == "fused"
    assert group.lead is not None
    assert group.lead.ratio == pytest.approx((2 * 2 * 0.5 * 8 / 8.1) ** 0.25)
    assert [(b.label, b.best, b.clear) for b in group.behind] == [
        ("layer2", "eager", True),
        ("layer3", "eager", False),
    ]
    assert [b.times for b in group.behind] == pytest.approx([2.0, 8.1 / 8])
    text = _text(answer_of(_results(records)))
    assert "Fastest: fused on 2 of 4, eager on 2." in text
    assert "layer2: 2.00 times as long as eager\n" in text
    assert "layer3: 1.01 times as long as eager (the intervals overlap)\n" in text
    assert "behind on 2 of 4, 1 of them" in text


@pytest.mark.parametrize("count", [2, 3, 40])
def test_the_interval_is_students(count: int) -> None:
    ratios = np.random.default_rng(count).lognormal(0.2, 0.3, count)
    lead = Lead.of(ratios.tolist())
    expected = ttest_1samp(np.log(ratios), 0.0).confidence_interval(0.95)
    assert lead.low == pytest.approx(np.exp(float(expected.low)))
    assert lead.high == pytest.approx(np.exp(float(expected.high)))
    assert lead.ratio == pytest.approx(np.exp(np.log(ratios).mean()))


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    leads = [Lead.of(np.exp(rng.normal(0.1, 0.2, 6)).tolist()) for _ in range(1000)]
    covered = sum(lead.low <= np.exp(0.1) <= lead.high for lead in leads)
    assert 925 <= covered <= 975


def test_one_problem_has_no_interval() -> None:
    assert Lead.of([2.0]) == Lead(2.0, None, None, 1)
    text = _text(answer_of(_results(_timed({"fused": [10], "ipex": [20]}))))
    assert "fused is 2.00 times as fast as ipex (one problem, so without an interval)." in text
    assert "It is behind on none of 1." in text
    with pytest.raises(ValueError, match="at least one"):
        Lead.of([])


def test_no_records_and_no_times() -> None:
    nothing = answer_of(_results([]))
    assert _text(nothing) == ("Nothing was measured: there are no records.\nMachine: unknown CPU.")
    refused = answer_of(_results(_timed({"fused": [None, None], "ipex": [None, None]})))
    assert _text(refused) == (
        "f32 batch 1 threads 2: 2 problems, and no backend has a time on any.\n"
        "Records without a time: 4 refused.\n"
        "Machine: unknown CPU; threads 2."
    )
    assert refused.groups[0].lead is None


@pytest.mark.parametrize("backend", ["fused", "ipex"])
def test_one_backend_alone_is_not_called_the_fastest(backend: str) -> None:
    text = _text(answer_of(_results(_timed({backend: [10, 20, None]}))))
    assert "astest" not in text
    assert "times as" not in text
    assert f"{backend} has a time on 2 of 3." in text


def test_without_ours_it_is_about_the_backend_that_is_fastest_most_often() -> None:
    records = _timed({"eager": [30, 20, 10], "ipex": [20, 10, 20]})
    assert _only_group(records).subject == "ipex"
    assert "ipex, fastest most often, is" in _text(answer_of(_results(records)))


def test_ours_without_a_time_is_said() -> None:
    records = _timed({"eager": [30, 20], "ipex": [20, 10], "fused": [None, None]})
    text = _text(answer_of(_results(records)))
    assert "fused has no time on 2 that another has a time on." in text
    assert "times as fast" not in text


def test_a_problem_of_one_backend_is_not_compared() -> None:
    records = _timed({"fused": [10, 10, None], "ipex": [20, None, 5]})
    group = _only_group(records)
    assert (group.compared, group.missing, group.fastest) == (1, 1, {"fused": 1})
    assert group.lead == Lead(2.0, None, None, 1)
    assert "Not compared: 2 problems" in _text(answer_of(_results(records)))


def test_what_auto_ran_on_ours_is_no_rival() -> None:
    auto = [_record("auto", i, us, ran_on="fused") for i, us in enumerate((9.9, 9.9))]
    group = _only_group([*_timed({"fused": [10, 10], "ipex": [20, 20]}), *auto])
    assert group.fastest == {"fused": 2}
    assert group.others == ("ipex",)
    assert group.behind == ()


def test_ties_count_for_each_and_put_nobody_behind() -> None:
    records = _timed({"fused": [10, 10], "ipex": [10, 20]})
    group = _only_group(records)
    assert group.fastest == {"fused": 2, "ipex": 1}
    assert group.behind == ()
    assert "(ties count for each)" in _text(answer_of(_results(records)))


def test_the_worst_are_listed_and_the_rest_counted() -> None:
    records = _timed({"fused": [10 + i for i in range(9)], "ipex": [10.0] + [9.0] * 8})
    items = [line.text for line in sentences(answer_of(_results(records))) if line.is_item]
    assert [item.partition(":")[0] for item in items[:-1]] == [f"layer{i}" for i in range(8, 3, -1)]
    assert items[-1] == "and 3 more, none by more than 1.44 times"


def test_times_without_an_interval_are_not_clearly_behind() -> None:
    slow, fast = _timed({"fused": [20], "ipex": [10]})
    assert fast.time is not None
    bare = fast.time.model_copy(update={"low_us": None, "high_us": None})
    records = [slow, fast.model_copy(update={"time": bare})]
    text = _text(answer_of(_results(records)))
    assert "none of them by more" in text
    assert "2.00 times as long as ipex (no interval)" in text


def test_dtypes_threads_and_caches_are_told_apart() -> None:
    records = _timed({"fused": [10], "ipex": [20]})
    bf16 = [r.model_copy(update={"problem": r.problem + "_bf16"}) for r in records]
    alone = [r.model_copy(update={"threads": 1}) for r in records]
    cold = [r.model_copy(update={"cache": "cold"}) for r in records]
    answer = answer_of(_results([*records, *bf16, *alone, *cold], cpu="A CPU", cores=4))
    assert [group.title for group in answer.groups] == [
        "f32 batch 1 threads 2",
        "bf16 batch 1 threads 2",
        "f32 batch 1 threads 1",
        "f32 batch 1 threads 2 cold caches",
    ]
    assert all(group.problems == group.compared == 1 for group in answer.groups)
    assert answer.machine == "A CPU, 4 cores; threads 1, 2"


def test_models_are_about_our_engine() -> None:
    assert {group.subject for group in answer_of(models_file()).groups} == {"dnnsep"}


def test_warnings_and_refusals_are_counted() -> None:
    (_, results), _ = two_files()
    answer = answer_of(results)
    assert answer.timed == sum(r.status == "ok" for r in results.records)
    assert answer.statuses == {"incorrect": 1, "refused": 9, "failed": 1}
    assert f"With a warning, see below: {answer.warned} of {answer.timed} times." in _text(answer)


def test_it_is_what_reports_begin_with() -> None:
    files = two_files()
    firsts = [sentences(answer_of(results))[0].text for _, results in files]
    html = as_html(files)
    body = html[html.index("</h1>") :]
    first, second = (body.index(text) for text in firsts)
    assert first < second < body.index("Plotly.newPlot(")
    assert body.index("AMD EPYC, 2 cores") < second < body.index("Intel Xeon, 2 cores")
    markdown = as_report(files).split("\n\n")
    assert [markdown[i] for i in (0, 4)] == ["### epyc.json", "### xeon.json"]
    for part, text in zip((markdown[1], markdown[5]), firsts, strict=True):
        assert part.startswith(f"- {text}")
