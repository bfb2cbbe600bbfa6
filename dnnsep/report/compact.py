"""Shows a sweep's results as a table that fits a terminal of 80 columns: a line a record, and what
ran in lines below it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from dnnsep.report import table
from dnnsep.sweep.results import Record, Results

_LONGEST_LABEL = 32


def as_rich(results: Results) -> Table:
    """Returns the table: problem, backend, median, share of the roof, speed-up."""
    records = results.records
    several_threads = len({record.threads for record in records}) > 1
    several_caches = len({record.cache for record in records}) > 1
    shown = Table(title=results.title, title_justify="left", header_style="bold")
    shown.add_column("problem", no_wrap=True, max_width=_LONGEST_LABEL)
    if several_threads:
        shown.add_column("thr", justify="right", no_wrap=True)
    if several_caches:
        shown.add_column("cache", no_wrap=True)
    shown.add_column("backend", no_wrap=True, max_width=14)
    for heading in ("median µs", "of roof", "speed-up"):
        shown.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for record, row in zip(records, table.rows(results), strict=True):
        here = table.place(record)
        if previous is not None and here != previous:
            shown.add_section()
        cells = [Text("" if here == previous else label(record, records))]
        cells += [Text(row.threads)] if several_threads else []
        cells += [Text(row.cache)] if several_caches else []
        cells += [Text(row.backend), Text(row.median_us or record.status)]
        cells += [Text(row.roof.partition(" ")[0]), Text(row.speedup)]
        shown.add_row(*cells, style={"ok": "", "refused": "dim"}.get(record.status, "red"))
        previous = here
    return shown


def notes(results: Results) -> list[str]:
    """Returns lines that say what ran on each backend, and why records have no time."""
    ran: dict[str, Counter[str]] = {}
    reasons: dict[tuple[str, str], list[str]] = {}
    for record in results.records:
        if record.time is not None:
            ran.setdefault(record.backend, Counter())[table.impl_text(record.impls)] += 1
        else:
            why = f"{record.status}: {record.reason}"
            reasons.setdefault((record.backend, why), []).append(label(record, results.records))
    lines = [
        f"{backend} ran: " + "; ".join(f"{impl} ({count})" for impl, count in impls.most_common())
        for backend, impls in ran.items()
    ]
    return lines + [
        f"{backend} {why} ({labels[0]}{f' and {len(labels) - 1} more' if labels[1:] else ''})"
        for (backend, why), labels in reasons.items()
    ]


def label(record: Record, among: Sequence[Record]) -> str:
    """Returns a problem's name with what tells it apart from others of that name; its descriptor
    where it has none."""
    if not record.name:
        return record.problem
    others = [other for other in among if other.name == record.name]
    text = record.name
    if len({other.dtype for other in others}) > 1:
        text += f" {record.dtype}"
    if len({other.batch for other in others}) > 1:
        text += f" batch {record.batch}"
    return text
