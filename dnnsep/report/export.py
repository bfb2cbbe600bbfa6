"""Writes a sweep's records or samples as a tidy table for other tools: CSV or parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from dnnsep.problem import Problem
from dnnsep.report.load import shareable, shareable_text, version_of
from dnnsep.sweep.results import Record, Results, block_of, parse_model

# The columns with their types, in order.
RECORD_COLUMNS: dict[str, type] = {
    **{"title": str, "created": str, "dnnsep_version": str, "cpu": str, "cores": int},
    **{"problem": str, "name": str, "kind": str},
    **{"batch": int, "in_channels": int, "out_channels": int, "height": int, "width": int},
    **{"kernel_h": int, "kernel_w": int, "stride_h": int, "stride_w": int},
    **{"padding_top": int, "padding_bottom": int, "padding_left": int, "padding_right": int},
    **{"dilation_h": int, "dilation_w": int, "channel_multiplier": int, "bias": bool},
    **{"activation_depthwise": str, "activation_pointwise": str, "dtype": str},
    "machine": str,
    **{"backend": str, "threads": int, "cache": str, "status": str, "reason": str},
    **{"ran_on": str, "check": str, "impls": str, "flops": int},
    **{"median_us": float, "low_us": float, "high_us": float, "q25_us": float, "q75_us": float},
    **{"min_us": float, "count": int, "rounds": int, "gflops": float},
    **{"roof_gflops": float, "roof_binds": str, "roof_share": float, "intensity": float},
    **{"output": str, "peak_memory_bytes": int, "warnings": str},
}
# The columns of each kind's activations: an ordinary convolution mixes channels, as a pointwise one
# does.
_ACTIVATIONS = {
    "separable": ("activation_depthwise", "activation_pointwise"),
    "depthwise": ("activation_depthwise",),
    "convolution": ("activation_pointwise",),
    "linear": ("activation_pointwise",),
    "mean": (),
}
SAMPLE_COLUMNS: dict[str, type] = {
    "machine": str,
    **{"problem": str, "name": str, "backend": str, "threads": int, "cache": str},
    **{"visit": int, "round": int, "call": int, "us": float, "control_us": float},
}


def export(
    results: Results | Mapping[str, Results],
    path: Path,
    to: Literal["csv", "parquet"],
    samples: bool = False,
) -> None:
    """Writes a row for each record, or with ``samples`` for each timed call, to ``path``.

    Columns and types are RECORD_COLUMNS or SAMPLE_COLUMNS; times are microseconds a call,
    ``roof_share`` is 0 to 1, and missing where the roof cannot be right, ``intensity`` FLOPs per
    byte. A missing value is empty in CSV and null in parquet. Lists are joined: impls by `` + ``,
    warnings by ``; ``. Of the paths of this machine their last part is left. ``machine`` is the
    name of results by machine, and missing where they are of one. An existing file is replaced.

    Raises ValueError where pyarrow is needed and missing, or a problem is not a descriptor;
    OSError where the file cannot be written.
    """
    columns = SAMPLE_COLUMNS if samples else RECORD_COLUMNS
    rows_of = _sample_rows if samples else _record_rows
    rows = [
        {**row, "machine": shareable_text(machine) or None}
        for machine, found in ({"": results} if isinstance(results, Results) else results).items()
        for row in rows_of(shareable(found))
    ]
    if to == "parquet":
        _write_parquet(path, columns, rows)
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _record_rows(results: Results) -> Iterator[dict[str, Any]]:
    of_sweep = {
        "title": results.title,
        "created": results.created,
        "dnnsep_version": version_of(results.fingerprint) or None,
        "cpu": results.fingerprint.get("cpu"),
        "cores": results.fingerprint.get("cores"),
    }
    for record in results.records:
        of_record = record.model_dump(
            include=set(RECORD_COLUMNS) - {"impls", "warnings", "rounds"}, mode="python"
        )
        roof = record.roof
        yield {
            **dict.fromkeys(RECORD_COLUMNS),
            **of_sweep,
            **of_record,
            **(_model_columns if record.is_model else _problem_columns)(record.problem),
            **(record.time.model_dump() if record.time else {}),
            "impls": " + ".join(record.impls) or None,
            "roof_gflops": roof.gflops if roof else None,
            "roof_binds": roof.binds if roof else None,
            "intensity": roof.intensity if roof else None,
            "roof_share": record.roof_share,
            "warnings": "; ".join(record.doubts) or None,
        }


def _model_columns(problem: str) -> dict[str, Any]:
    _, shape, dtype = parse_model(problem)
    if (block := block_of(problem)) is not None:
        names = ("batch", "in_channels", "out_channels", "height", "width", "dtype", "kind")
        columns = {name: getattr(block, name) for name in names}
        columns |= zip(("kernel_h", "kernel_w"), block.kernel, strict=True)
        return columns | dict(zip(("stride_h", "stride_w"), block.stride, strict=True))
    return {"batch": shape[0], "dtype": dtype, "kind": "model"}


def _problem_columns(descriptor: str) -> dict[str, Any]:
    problem = Problem.parse(descriptor)
    names = ("batch", "in_channels", "out_channels", "height", "width", "channel_multiplier")
    columns = {name: getattr(problem, name) for name in (*names, "bias", "dtype", "kind")}
    for field, columns_of_field in (
        ("kernel", ("kernel_h", "kernel_w")),
        ("stride", ("stride_h", "stride_w")),
        ("padding", ("padding_top", "padding_bottom", "padding_left", "padding_right")),
        ("dilation", ("dilation_h", "dilation_w")),
    ):
        columns |= zip(columns_of_field, getattr(problem, field), strict=True)
    columns |= zip(_ACTIVATIONS[problem.kind], problem.activations, strict=True)
    return columns


def _sample_rows(results: Results) -> Iterator[dict[str, Any]]:
    for record in results.records:
        yield from _samples_of(record)


def _samples_of(record: Record) -> Iterator[dict[str, Any]]:
    case = record.model_dump(include={"problem", "name", "backend", "threads", "cache"})
    for index, turn in enumerate(record.rounds):
        for call, us in enumerate(turn.calls_us):
            yield {
                **case,
                "visit": turn.visit,
                "round": index,
                "call": call,
                "us": us,
                "control_us": turn.busy_us,
            }


def _write_parquet(path: Path, columns: dict[str, type], rows: list[dict[str, Any]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("parquet needs pyarrow (extra: parquet)") from None
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
