"""A sweep's results as a table: for the terminal, as markdown, as CSV. Reads results only."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from dnnsep.problem import Problem
from dnnsep.sweep.results import Record, Results
from dnnsep.sweep.stats import geomean

# A problem on a number of threads.
Place = tuple[str, int]


@dataclass(frozen=True)
class Row:
    """A record as it is shown, every field as text; empty where there is no figure."""

    problem: str
    threads: str
    backend: str
    impl: str
    median_us: str
    spread: str
    mflop: str
    gflops: str
    speedup: str
    stages: str


HEADINGS = {
    "problem": "problem",
    "threads": "thr",
    "backend": "backend",
    "impl": "what ran",
    "median_us": "median µs",
    "spread": "±",
    "mflop": "MFLOP",
    "gflops": "GFLOP/s",
    "speedup": "speed-up",
    "stages": "stages, µs (call over their sum)",
}


def rows(results: Results) -> list[Row]:
    """A row a record; speed-ups are against the first backend that ran."""
    _, base = _base_times(results.records)
    return [_row(record, base.get((record.problem, record.threads))) for record in results.records]


def summary(results: Results) -> list[str]:
    """Geometric means of the speed-ups against the first backend that ran, by dtype, batch and
    threads, with the number of problems each is over."""
    base_name, base = _base_times(results.records)
    groups: dict[tuple[str, int, int], dict[str, list[float]]] = {}
    for record in results.records:
        base_us = base.get((record.problem, record.threads))
        if record.backend == base_name or record.time is None or base_us is None:
            continue
        problem = Problem.parse(record.problem)
        group = groups.setdefault((problem.dtype, problem.batch, record.threads), {})
        group.setdefault(record.backend, []).append(base_us / record.time.median_us)
    return [
        f"geomean speed against {base_name}, {dtype} batch {batch} threads {threads}: "
        + ", ".join(
            f"{name} {geomean(ratios):.2f} ({len(ratios)})" for name, ratios in group.items()
        )
        for (dtype, batch, threads), group in groups.items()
    ]


def as_rich(results: Results) -> Table:
    shown = _columns(results)
    table = Table(title=results.title, title_justify="left", header_style="bold")
    for name in shown:
        right = name in ("threads", "median_us", "spread", "mflop", "gflops", "speedup")
        table.add_column(
            HEADINGS[name], justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    previous = None
    for record, row in zip(results.records, rows(results), strict=True):
        place = (record.problem, record.threads)
        if previous is not None and place != previous:
            table.add_section()
        values = [getattr(row, name) for name in shown]
        if place == previous:
            values[0] = ""
        style = {"ok": "", "refused": "dim"}.get(record.status, "red")
        table.add_row(*values, style=style)
        previous = place
    return table


def as_markdown(results: Results) -> str:
    shown = _columns(results)
    lines = [
        "| " + " | ".join(HEADINGS[name] for name in shown) + " |",
        "|" + " --- |" * len(shown),
    ]
    for row in rows(results):
        cells = (getattr(row, name).replace("|", "\\|").replace("\n", " ") for name in shown)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *summary(results)])


def as_csv(results: Results) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADINGS)
    for row in rows(results):
        writer.writerow([str(v).replace("\n", " ") for v in vars(row).values()])
    return out.getvalue()


def impl_text(impls: Sequence[str]) -> str:
    """``brdgmm_dw:avx512_core + brg_matmul:avx512_core`` of oneDNN's kinds and impls."""
    return " + ".join(
        "reorder" if kind == "reorder" else impl
        for kind, _, impl in (text.partition(":") for text in impls)
    )


def _base_times(records: Sequence[Record]) -> tuple[str, dict[Place, float]]:
    """The first backend that ran, and its median for each problem and thread count it ran."""
    base = next((r.backend for r in records if r.time is not None), "")
    ran = (r for r in records if r.backend == base)
    return base, {(r.problem, r.threads): r.time.median_us for r in ran if r.time is not None}


def _row(record: Record, base_us: float | None) -> Row:
    name = f"{record.name}\n" if record.name else ""
    ran_on = f" ({record.ran_on})" if record.ran_on not in (None, record.backend) else ""
    what_ran = impl_text(record.impls) if record.time else f"{record.status}: {record.reason}"
    time = record.time
    return Row(
        problem=name + record.problem,
        threads=str(record.threads),
        backend=record.backend + ran_on,
        impl=what_ran or "no oneDNN primitive",
        median_us=f"{time.median_us:.1f}" if time else "",
        spread=f"{100 * time.spread:.1f}%" if time else "",
        mflop=f"{record.flops / 1e6:.1f}",
        gflops=f"{record.gflops:.1f}" if record.gflops is not None else "",
        speedup=f"{base_us / time.median_us:.2f}" if time and base_us else "",
        stages=_stages_text(record),
    )


def _stages_text(record: Record) -> str:
    if not record.stages:
        return ""
    parts = " + ".join(f"{name} {s.median_us:.1f}" for name, s in record.stages.items())
    return f"{parts} ({record.stage_overhead:.2f})"


def _columns(results: Results) -> list[str]:
    staged = any(record.stages for record in results.records)
    return [name for name in HEADINGS if staged or name != "stages"]
