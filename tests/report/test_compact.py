"""The sweep's table for 80 columns: one line a record, whole or as cases come in."""

from __future__ import annotations

import pytest

from dnnsep.measure.roofs import Roof
from dnnsep.report import table
from dnnsep.report.compact import Layout, labels_of, layout_of, notes, shortened, wrapped
from dnnsep.sweep.results import Record, Results
from tests.report.samples import awkward_file, models_file, two_files


def _layout(results: Results, width: int = 80) -> Layout:
    records = results.records
    return layout_of(
        results.title[:width],
        {record.problem: record.name for record in records},
        [record.backend for record in records],
        (len({r.threads for r in records}), len({r.cache for r in records})),
        any(r.roof for r in records),
        width,
    )


def _lines(results: Results, width: int = 80) -> list[str]:
    return [line for _, line in _layout(results, width).lines(results.records)]


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(
    "results", [two_files()[0][1], two_files()[1][1], awkward_file()[1], models_file()]
)
def test_a_record_is_a_line_that_fits(results: Results, width: int) -> None:
    lines = _lines(results, width)
    layout = _layout(results, width)
    assert len(lines) == len(results.records)
    assert all("\n" not in line for line in lines)
    assert max(map(len, [*layout.head(), *lines])) <= width


def test_a_line_has_name_backend_median_share_and_speed_up() -> None:
    (_, results), _ = two_files()
    first, second = results.records[:2]
    assert first.time is not None
    assert second.time is not None
    lines = _lines(results)
    share = f"{first.roof_share:.0%}"
    assert lines[0].split() == [
        *("conv2_1", "f32", "ipex", f"{first.time.median_us:.1f}", share, "1.00")
    ]
    assert lines[1].split()[0] == "onnxruntime"  # the name is said once
    assert lines[1].split()[-1] == f"{first.time.median_us / second.time.median_us:.2f}"
    assert any(line.split()[:2] == ["conv2_1", "bf16"] for line in lines)


def test_lines_that_come_case_by_case_are_those_of_the_whole() -> None:
    (_, results), _ = two_files()
    layout, records = _layout(results), results.records
    pieces = [
        line
        for end in range(5, len(records) + 1, 5)
        for _, line in layout.lines(records[:end], end - 5)
    ]
    whole = [line for _, line in layout.lines(records)]
    assert [p.replace("!", " ") for p in pieces] == [line.replace("!", " ") for line in whole]


def test_a_record_without_a_time_has_its_status_and_the_reason_below() -> None:
    (_, results), _ = two_files()
    layout = _layout(results)
    (refused,) = {line.split()[-1] for r, line in layout.lines(results.records) if not r.time} - {
        *("failed", "incorrect")
    }
    assert refused == "refused"
    below = notes(results, layout.labels)
    assert "xnnpack refused: xnnpack runs f32 only (conv2_1 bf16 and 8 more)" in below
    assert below[0].startswith("ipex ran brdgmm_dw:avx512_core + brg_matmul:avx512_core (18)")
    assert max(map(len, wrapped([*below, *table.summary(results)], 80))) <= 80


def _warned(results: Results, warnings: list[list[str]]) -> Results:
    records = [
        record.model_copy(update={"warnings": texts})
        for record, texts in zip(results.records, warnings, strict=False)
    ]
    return results.model_copy(update={"records": records})


def test_a_warning_of_most_records_is_said_once_and_marks_none() -> None:
    _, (_, results) = two_files()
    cold = "cache: cold takes 3 times as long as hot"
    warned = _warned(results, [[cold], [cold], [cold, "load: other processes"], [cold], []])
    lines = _lines(warned)
    assert [index for index, line in enumerate(lines) if "!" in line] == [2]
    told = [line for line in table.summary(warned) if line.startswith("warning")]
    assert len(told) == 2
    assert told[0].startswith(f"warning, 4 of 5 records: {cold}")
    assert [row.interval.endswith("!") for row in table.rows(warned)] == [0, 0, 1, 0, 0]


def test_the_warning_of_the_only_record_is_its_own() -> None:
    _, (_, results) = two_files()
    (line,) = _lines(_warned(results, [["load: other processes"]]))
    assert "!" in line


def test_a_rate_beyond_the_roof_has_a_word_in_place_of_a_share() -> None:
    _, (_, results) = two_files()
    first: Record = results.records[0]
    assert first.gflops is not None
    for binds, beyond, word in (
        ("L2", 1.3, "n/a: in cache"),
        ("vector unit", 1.3, "n/a: roof low"),
        ("vector unit", 1.02, "n/a: at roof"),
    ):
        roof = Roof(gflops=first.gflops / beyond, binds=binds, intensity=1)
        record = first.model_copy(update={"roof": roof, "warnings": []})
        alone = results.model_copy(update={"records": [record]})
        (line,) = _lines(alone)
        assert word in line
        assert ("!" in line) == (beyond > 1.05)
        assert len(line) <= 80


def test_names_are_cut_in_the_middle_and_stay_apart() -> None:
    assert shortened("features.block.3.expand", 12) == "feature…pand"
    assert shortened("conv", 12) == "conv"
    shapes = [f"mb1ic64oc{64 + i}ih56kh3sh1ph1" for i in range(3)]
    labels = labels_of(dict.fromkeys(shapes, "features.block.same"), 14)
    assert len(set(labels.values())) == 3
    assert max(map(len, labels.values())) <= 14
    plain = labels_of({f"{shapes[0]}_act:relu,relu": None, "net 1x3x9x9": None}, 40)
    assert list(plain.values()) == [shapes[0], "net 1x3x9x9"]
    batches = labels_of({shapes[0]: "a", shapes[0].replace("mb1", "mb4"): "a"}, 40)
    assert list(batches.values()) == ["a batch 1", "a batch 4"]
