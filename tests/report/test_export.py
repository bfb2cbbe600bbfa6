"""What is exported reads back as what was measured."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnnsep.report.export import RECORD_COLUMNS, SAMPLE_COLUMNS, export
from dnnsep.sweep.results import Results
from tests.report.samples import models_file, two_files


@pytest.fixture
def results() -> Results:
    return two_files()[0][1]


def _read(path: Path, columns: dict[str, type]) -> list[dict[str, Any]]:
    """A CSV file's rows with typed values, None where a cell is empty."""
    convert: dict[type, Callable[[str], Any]] = {str: str, int: int, float: float}
    convert[bool] = lambda text: text == "True"
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {name: convert[columns[name]](text) if text else None for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def test_records(results: Results, tmp_path: Path) -> None:
    results.records[0] = results.records[0].model_copy(update={"warnings": ["a, b", 'c "d"\ne']})
    export(results, tmp_path / "r.csv", "csv")
    rows = _read(tmp_path / "r.csv", RECORD_COLUMNS)
    assert len(rows) == len(results.records)
    assert list(rows[0]) == list(RECORD_COLUMNS)
    first, record = rows[0], results.records[0]
    assert record.time is not None
    assert record.roof is not None
    expected = {
        **{"title": "MobileNet V1", "created": results.created, "cpu": "AMD EPYC"},
        **{"problem": record.problem, "name": "conv2_1", "backend": "ipex", "threads": 2},
        **{"batch": 1, "in_channels": 32, "out_channels": 64, "height": 112, "width": 112},
        **{"kernel_h": 3, "stride_w": 1, "padding_left": 1, "dilation_h": 1, "bias": True},
        **{"activation_depthwise": "relu", "dtype": "f32", "channel_multiplier": 1},
        **record.time.model_dump(),
        **{"roof_gflops": record.roof.gflops, "roof_binds": record.roof.binds},
        **{"intensity": record.roof.intensity, "roof_share": record.roof_share},
        **{"gflops": record.gflops, "flops": record.flops, "status": "ok", "reason": None},
        **{"impls": "convolution:brdgmm_dw:avx512_core + matmul:brg_matmul:avx512_core"},
        **{"warnings": 'a, b; c "d"\ne', "peak_memory_bytes": 412_000_000, "output": "new"},
    }
    assert {name: first[name] for name in expected} == expected
    refused = next(row for row in rows if row["status"] == "refused")
    assert refused["reason"] == "xnnpack runs f32 only"
    assert [refused[name] for name in ("median_us", "count", "gflops", "roof_share")] == [None] * 4


def test_models_have_a_batch_and_a_dtype(tmp_path: Path) -> None:
    export(models_file(), tmp_path / "r.csv", "csv")
    rows = _read(tmp_path / "r.csv", RECORD_COLUMNS)
    found = [(row["batch"], row["dtype"]) for row in rows if row["backend"] == "dnnsep"]
    assert found == [(1, "f32"), (1, "bf16"), (4, "f32"), (4, "bf16")]


def test_samples(results: Results, tmp_path: Path) -> None:
    export(results, tmp_path / "s.csv", "csv", samples=True)
    rows = _read(tmp_path / "s.csv", SAMPLE_COLUMNS)
    calls = [us for r in results.records for turn in r.rounds for us in turn.calls_us]
    assert [row["us"] for row in rows] == calls
    record = results.records[0]
    assert rows[13] == {
        **{"problem": record.problem, "name": record.name, "backend": "ipex", "threads": 2},
        **{"cache": "hot", "visit": 0, "round": 1, "call": 1},
        **{"us": record.rounds[1].calls_us[1], "control_us": record.rounds[1].busy_us},
    }


@pytest.mark.parametrize("samples", [False, True])
def test_parquet_is_the_csv_with_types(results: Results, tmp_path: Path, samples: bool) -> None:
    import pyarrow.parquet as pq

    columns = SAMPLE_COLUMNS if samples else RECORD_COLUMNS
    export(results, tmp_path / "t.csv", "csv", samples)
    export(results, tmp_path / "t.parquet", "parquet", samples)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.to_pylist() == _read(tmp_path / "t.csv", columns)
    names = {str: "string", int: "int64", float: "double", bool: "bool"}
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {name: names[kind] for name, kind in columns.items()}


@pytest.mark.parametrize("samples", [False, True])
def test_no_records_still_have_columns(tmp_path: Path, samples: bool) -> None:
    export(Results(title="t", fingerprint={}, settings={}), tmp_path / "e.csv", "csv", samples)
    columns = SAMPLE_COLUMNS if samples else RECORD_COLUMNS
    assert (tmp_path / "e.csv").read_text() == ",".join(columns) + "\n"


def test_parquet_without_pyarrow(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"parquet needs pyarrow \(extra: parquet\)"):
        export(results, tmp_path / "t.parquet", "parquet")
    assert not (tmp_path / "t.parquet").exists()
