"""Shows a sweep's results as a table: for the terminal, as markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from dnnsep.measure.stats import geomean
from dnnsep.sweep.results import Key, Record, Results

# A problem on a number of threads, with hot or cold caches.
Place = tuple[str, int, str]


@dataclass(frozen=True)
class Row:
    """A record as it is shown: every field is text, and empty where there is no figure."""

    problem: str
    threads: str
    cache: str
    backend: str
    impl: str
    median_us: str
    interval: str
    mflop: str
    gflops: str
    roof: str
    speedup: str
    stages: str


HEADINGS = {
    "problem": "problem",
    "threads": "thr",
    "cache": "cache",
    "backend": "backend",
    "impl": "what ran",
    "median_us": "median µs",
    "interval": "± 95 %",
    "mflop": "MFLOP",
    "gflops": "GFLOP/s",
    "roof": "of roof",
    "speedup": "speed-up",
    "stages": "stages, µs (call over their sum)",
}


def rows(results: Results) -> list[Row]:
    """Returns a row for each record; speed-ups are against the first backend that ran."""
    _, base = base_times(results.records)
    shared = shared_kinds(results.records)
    return [_row(record, base.get(place(record)), shared) for record in results.records]


def summary(results: Results) -> list[str]:
    """Returns lines of geometric means of the speed-ups, then lines that count the warnings.

    Speed-ups are against the first backend that ran; there is a line for each dtype, batch, number
    of threads and cache state, with the number of problems that each mean is over.
    """
    base_name, base = base_times(results.records)
    groups: dict[str, dict[str, list[float]]] = {}
    for record in results.records:
        base_us = base.get(place(record))
        if record.backend == base_name or record.time is None or base_us is None:
            continue
        group = groups.setdefault(group_of(record), {})
        group.setdefault(record.backend, []).append(base_us / record.time.median_us)
    return [
        f"geomean speed against {base_name}, {title}: "
        + ", ".join(
            f"{name} {geomean(ratios):.2f} ({len(ratios)})" for name, ratios in group.items()
        )
        for title, group in groups.items()
    ] + _warning_counts(results)


def group_of(record: Record) -> str:
    """Returns what records must share to be averaged, such as ``f32 batch 1 threads 2``."""
    cold = " cold caches" if record.cache == "cold" else ""
    return f"{record.dtype} batch {record.batch} threads {record.threads}{cold}"


def place(record: Record) -> Place:
    """Returns where backends are compared with each other: problem, threads and cache state."""
    return (record.problem, record.threads, record.cache)


def kind_of(warning: str) -> str:
    """Returns the word that a warning begins with, such as ``load``."""
    return warning.partition(":")[0]


def shared_kinds(records: Sequence[Record]) -> frozenset[str]:
    """Returns the kinds of warning that most of the records with a time have.

    They say something of the sweep, so that they stand below the table and mark no record.
    """
    timed = [record for record in records if record.time is not None]
    counts = Counter(kind for r in timed for kind in {kind_of(text) for text in r.doubts})
    return frozenset(k for k, count in counts.items() if count > 1 and count > len(timed) / 2)


def own_doubts(record: Record, shared: frozenset[str]) -> list[str]:
    """Returns the warnings of a record that are not of the shared kinds."""
    return [text for text in record.doubts if kind_of(text) not in shared]


def _warning_counts(results: Results) -> list[str]:
    """Returns a line for each kind of warning: how many records have it, and the first of them."""
    kinds: dict[str, dict[Key, tuple[Record, str]]] = {}
    for record in results.records:
        for warning in record.doubts:
            of_kind = kinds.setdefault(kind_of(warning), {})
            of_kind.setdefault(record.key, (record, warning))
    lines = []
    for warned in kinds.values():
        record, warning = next(iter(warned.values()))
        lines.append(
            f"warning, {len(warned)} of {len(results.records)} records: {warning} "
            f"({record.name or record.problem}, {record.backend})"
        )
    return lines


def as_rich(results: Results) -> Table:
    """Returns a table for the terminal, a row a record, in sections of one problem each."""
    shown = _columns(results)
    table = Table(title=results.title, title_justify="left", header_style="bold")
    for name in shown:
        right = name not in ("problem", "cache", "backend", "impl", "stages")
        table.add_column(
            HEADINGS[name], justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    previous = None
    for record, row in zip(results.records, rows(results), strict=True):
        if previous is not None and place(record) != previous:
            table.add_section()
        values = [getattr(row, name) for name in shown]
        if place(record) == previous:
            values[0] = ""
        style = {"ok": "", "refused": "dim"}.get(record.status, "red")
        table.add_row(*values, style=style)
        previous = place(record)
    return table


def as_csv(results: Results) -> str:
    """Returns CSV text with all columns of HEADINGS, a row a record."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADINGS)
    for row in rows(results):
        writer.writerow([str(v).replace("\n", " ") for v in vars(row).values()])
    return text.getvalue()


def impl_text(impls: Sequence[str]) -> str:
    """Returns the implementations of ``kind:impl`` texts: ``brdgmm_dw:avx512_core + jit:avx2``.

    Only a reorder is shown as its kind.
    """
    return " + ".join(
        "reorder" if kind == "reorder" else impl
        for kind, _, impl in (text.partition(":") for text in impls)
    )


def base_times(records: Sequence[Record]) -> tuple[str, dict[Place, float]]:
    """Returns the first backend that ran, and its median in µs wherever it ran."""
    base = next((r.backend for r in records if r.time is not None), "")
    ran = (r for r in records if r.backend == base)
    return base, {place(r): r.time.median_us for r in ran if r.time is not None}


def speed_up(record: Record, base_us: float | None) -> str:
    """Returns how many times as fast as the base a record is; empty without one of them."""
    return f"{base_us / record.time.median_us:.2f}" if record.time and base_us else ""


def _row(record: Record, base_us: float | None, shared: frozenset[str]) -> Row:
    name = f"{record.name}\n" if record.name else ""
    ran_on = f" ({record.ran_on})" if record.ran_on not in (None, record.backend) else ""
    what_ran = impl_text(record.impls) if record.time else f"{record.status}: {record.reason}"
    time = record.time
    return Row(
        problem=name + record.problem,
        threads=str(record.threads),
        cache=record.cache,
        backend=record.backend + ran_on,
        impl=what_ran or "no oneDNN primitive",
        median_us=f"{time.median_us:.1f}" if time else "",
        interval=_interval_text(record, shared),
        mflop=f"{record.flops / 1e6:.1f}",
        gflops=f"{record.gflops:.1f}" if record.gflops is not None else "",
        roof=_roof_text(record),
        speedup=speed_up(record, base_us),
        stages=_stages_text(record),
    )


def _roof_text(record: Record) -> str:
    """Returns the share of the roof and what binds, or in two words why there is none."""
    if record.roof is None:
        return ""
    share = share_text(record)
    return share if record.roof_share is None else f"{share} {record.roof.binds}"


def share_text(record: Record) -> str:
    """Returns the share of the roof, or in two words why there is none; empty without a roof."""
    why, share = record.why_no_share, record.roof_share
    if why is not None:
        return f"n/a: {why.word}"
    return "" if share is None else f"{share:.0%}"


def _interval_text(record: Record, shared: frozenset[str]) -> str:
    """Returns half the median's 95 % interval in %, with a ! where a warning is its own."""
    if record.time is None:
        return ""
    precision = record.time.precision
    mark = " !" if own_doubts(record, shared) else ""
    return ("-" if precision is None else f"{100 * precision:.1f}%") + mark


def _stages_text(record: Record) -> str:
    """Returns each stage's median in µs, and the call's over their sum; empty without stages."""
    if not record.stages:
        return ""
    medians = " + ".join(f"{name} {s.median_us:.1f}" for name, s in record.stages.items())
    return f"{medians} ({record.stage_overhead:.2f})"


def _columns(results: Results) -> list[str]:
    """Returns the columns that are shown: stages and caches only where they say something."""
    shown = dict.fromkeys(HEADINGS)
    if not any(record.stages for record in results.records):
        del shown["stages"]
    if all(record.cache == "hot" for record in results.records):
        del shown["cache"]
    return list(shown)
