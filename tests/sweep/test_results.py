from __future__ import annotations

from pathlib import Path

import pytest

from dnnsep.measure.roofs import Roof
from dnnsep.measure.stats import Stats
from dnnsep.report.markdown import as_markdown
from dnnsep.report.table import as_csv, rows, summary
from dnnsep.sweep.results import Record, Results
from tests.sweep.samples import rounds_of, small_roofs


def _record(backend: str, median: float, **fields: object) -> Record:
    return Record.model_validate(
        {
            "problem": "mb1ic4oc4ih8kh3sh1ph0",
            "backend": backend,
            "threads": 2,
            "status": "ok",
            "flops": 1_000_000,
            "ran_on": backend,
            "impls": ["convolution:brdgmm_dw:avx512_core", "reorder:jit:uni"],
            "rounds": (rounds := rounds_of([[median * 0.9, median, median * 1.2]])),
            "time": Stats.of(rounds),
            "gflops": 1_000_000 / median / 1000,
            **fields,
        }
    )


def _results() -> Results:
    refused = Record(
        problem="mb1ic4oc4ih8kh3sh1ph0",
        backend="ipex",
        threads=2,
        status="refused",
        reason="not installed",
        flops=1_000_000,
    )
    records = [_record("onednn", 100.0), _record("eager", 200.0), refused]
    return Results(title="t", fingerprint={"cpu": "x"}, settings={}, records=records)


def test_save_and_load(tmp_path: Path) -> None:
    results = _results()
    results.save(tmp_path / "r.json")
    assert Results.load(tmp_path / "r.json") == results
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "Invalid JSON"),
        ("{}", "title: Field required"),
        ('{"format": "other"}', "format: Input should be 'dnnsep-sweep'"),
        ('{"version": 9}', "version: Input should be 3"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"r\.json: ") as raised:
        Results.load(path)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_table_rows() -> None:
    onednn, eager, ipex = rows(_results())
    assert (onednn.speedup, eager.speedup, ipex.speedup) == ("1.00", "0.50", "")
    assert onednn.impl == "brdgmm_dw:avx512_core + reorder"
    assert ipex.impl == "refused: not installed"
    assert (eager.median_us, eager.gflops) == ("200.0", "5.0")
    assert summary(_results()) == [
        "geomean speed against onednn, f32 batch 1 threads 2: eager 0.50 (1)"
    ]


def test_speed_ups_are_against_the_first_backend_that_ran() -> None:
    results = _results()
    results.records.reverse()  # the refused one first, then eager
    ipex, eager, onednn = rows(results)
    assert (ipex.speedup, eager.speedup, onednn.speedup) == ("", "1.00", "2.00")
    assert summary(results) == [
        "geomean speed against eager, f32 batch 1 threads 2: onednn 2.00 (1)"
    ]


def test_a_roof_that_cannot_be_right_is_said_once() -> None:
    """10 and 5 GFLOP/s under a roof of 4 that a busy moment left: no share, and one line."""
    results = _results()
    low = Roof(gflops=4, binds="L2", intensity=3)
    faster = {"roof": low, "warnings": ["spread: wide"]}
    results.records = [
        *(record.model_copy(update=faster) for record in results.records[:2]),
        _record("fused", 250.0, roof=low),
    ]
    onednn, eager, fused = rows(results)
    assert onednn.roof == eager.roof == "n/a: in cache"
    assert fused.roof == "100% L2"
    assert not any(row.interval.endswith("!") for row in (onednn, eager, fused))  # most have them
    (line,) = [line for line in summary(results) if "roof" in line]
    assert line.startswith("warning, 2 of 3 records: roof: 2.50 times what the bandwidth of L2")
    assert results.records[0].warnings == ["spread: wide"]


def test_results_from_before_tiles_were_measured(tmp_path: Path) -> None:
    """They have no roof of tiles, and ``FMA`` for the vector unit."""
    roof = Roof(gflops=20, binds="FMA", intensity=3)
    results = _results().model_copy(update={"records": [_record("onednn", 100.0, roof=roof)]})
    results.roofs = {2: small_roofs(2)}
    path = tmp_path / "r.json"
    path.write_text(results.to_json().replace('"tile_gflops":{},', ""))
    assert "tile_gflops" not in path.read_text()
    assert Results.load(path) == results
    assert rows(Results.load(path))[0].roof == "50% FMA"


def test_table_formats() -> None:
    assert as_markdown(_results()).count("\n| ") == 4
    lines = as_csv(_results()).splitlines()
    assert lines[0].startswith("problem,threads,cache,backend,impl,median_us,interval")
    assert len(lines) == 4
