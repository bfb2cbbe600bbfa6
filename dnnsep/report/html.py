"""Writes results as one HTML page that needs no network: the answer, charts, tables, machine."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from dnnsep.measure.roofs import Roofs
from dnnsep.measure.stats import geomean
from dnnsep.report import by_machine
from dnnsep.report.answer import answer_of, sentences
from dnnsep.report.charts import bars, heat_map
from dnnsep.report.commands import commands
from dnnsep.report.labels import Style, hover_text, labels_of, shortened, styles_of
from dnnsep.report.load import shareable, shareable_text
from dnnsep.report.matrix import matrix_of
from dnnsep.report.page import chart, page, table
from dnnsep.report.table import base_times, group_of, place
from dnnsep.sweep.results import Record, Results


def as_html(files: Sequence[tuple[str, Results]]) -> str:
    """Returns one page of the results of one or more files, each under its label.

    It begins with the answer of every file, after how often the winner changes between them. Times
    are microseconds a call, rates GFLOP/s. Speed-ups are against the first backend that ran in the
    same file. Raises ValueError where a record's problem is neither a model nor a descriptor.
    """
    files = [(shareable_text(label), shareable(results)) for label, results in files]
    styles = styles_of(record.backend for _, results in files for record in results.records)
    titles = " + ".join(dict.fromkeys(results.title for _, results in files))
    matrix = matrix_of(files)
    # Those of several files stand side by side.
    rooflines = len(files) == 1
    return page(
        f"dnnsep: {titles}" if titles else "dnnsep",
        [
            by_machine.answer(matrix),
            *(_answer(i, label, results) for i, (label, results) in enumerate(files)),
            by_machine.sections(files, matrix, styles),
            *(
                _file(i, label, results, styles, rooflines)
                for i, (label, results) in enumerate(files)
            ),
        ],
    )


def _answer(index: int, label: str, results: Results) -> str:
    """Returns what a file's results come to, under a link to its section."""
    lines = sentences(answer_of(results))
    shown = "".join(
        f"<p{' class=item' if line.is_item else ''}>{escape(line.text)}</p>" for line in lines
    )
    link = f'<p class="note">of <a href="#file{index}">{escape(label)}</a></p>'
    return f'<section class="answer">{link}{shown}</section>'


def _file(
    index: int, label: str, results: Results, styles: dict[str, Style], rooflines: bool
) -> str:
    """Returns the section of one file, ``rooflines`` saying whether it has its own."""
    records, roofs = results.records, results.roofs.values()
    ok = sum(record.status == "ok" for record in records)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(group_of(record), []).append(record)
    # A group without a time has nothing to draw.
    timed = {t: g for t, g in groups.items() if any(record.time is not None for record in g)}
    return "\n".join(
        [
            f'<section id="file{index}"><h2>{escape(label)}</h2>',
            f"<p>{escape(results.title)}, {escape(results.created)}: "
            f"{len(records)} records, {ok} with figures</p>",
            *(_roofline(measured, records, styles) for measured in roofs if rooflines),
            *(_charts(title, group, styles) for title, group in timed.items()),
            _speeds(timed, *base_times(records)),
            _doubts(records),
            _commands(results),
            *(_roofs(measured) for measured in roofs),
            "<h3>Machine</h3>" + _facts(results.fingerprint),
            "<h3>Settings</h3>" + _facts(results.settings),
            "</section>",
        ]
    )


def _facts(facts: dict[str, Any]) -> str:
    """Returns named facts, such as a fingerprint's, as a list."""
    rows = (
        f"<dt>{escape(name.removesuffix('_bytes').replace('_', ' '))}</dt>"
        f"<dd>{escape(_fact(name, value))}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


def _fact(name: str, value: Any) -> str:
    """Returns a value as text that is not escaped; a name that ends in ``_bytes`` is a size."""
    if isinstance(value, dict):
        inner_name = f"{name}_bytes" if name == "caches" else ""
        return ", ".join(f"{key} {_fact(inner_name, v)}" for key, v in value.items()) or "none set"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "unknown"
    return _size(value) if name.endswith("_bytes") else str(value)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:g} MiB"


def _roofs(roofs: Roofs) -> str:
    units = [
        [unit, escape(dtype), f"{rate:.1f}", f"{a_cycle:.1f}"]
        for unit, dtype, rate, a_cycle in roofs.units
    ]
    memory = [
        [
            escape(level.name),
            "" if level.capacity_bytes is None else _size(level.capacity_bytes),
            f"{level.read_gbs:.1f}",
            f"{level.copy_gbs:.1f}",
        ]
        for level in roofs.memory
    ]
    return (
        f"<h3>Measured roofs, threads {roofs.threads}, {roofs.clock_ghz:.2f} GHz</h3>"
        + table(["unit", "dtype", "GFLOP/s (int8: GOP/s)", "a cycle and core"], units)
        + table(["memory", "size", "read GB/s", "copy GB/s (read + written)"], memory)
    )


def _roofline(roofs: Roofs, records: Sequence[Record], styles: dict[str, Style]) -> str:
    head = f"<h3>Roofline, threads {roofs.threads}</h3>{by_machine.ROOFLINE_NOTE}"
    return chart(head, by_machine.roofline_of(roofs, records, styles))


def _charts(title: str, group: Sequence[Record], styles: dict[str, Style]) -> str:
    """Returns the charts of records that are compared."""
    return (
        f"<h3>{escape(title)}</h3>"
        + chart("<h4>Times</h4>", bars(group, styles))
        + chart("<h4>Share of the roof, %</h4>", heat_map(group))
    )


def _speeds(
    groups: dict[str, list[Record]], base: str, base_us: dict[tuple[str, int, str], float]
) -> str:
    """Returns the tables of the speeds against the base, one a group; empty without a group."""
    tables = (
        f"<h4>{escape(title)}</h4>{_speedups(group, base_us)}" for title, group in groups.items()
    )
    return (
        f"<h3>Speed against {escape(base)}</h3>"
        '<p class="note">the fastest of each row is bold; ! has a warning, below</p>'
        + "".join(tables)
        if groups
        else ""
    )


def _speedups(group: Sequence[Record], base_us: dict[tuple[str, int, str], float]) -> str:
    """Returns a table of layers by backends: the speed against the base, and the median in µs.

    The fastest of each row is marked; ``base_us`` are the base's medians.
    """
    by_cell = {(record.problem, record.backend): record for record in group}
    backends = list(dict.fromkeys(record.backend for record in group))
    ratios: dict[str, list[float]] = {backend: [] for backend in backends}
    rows = []
    for problem, label in labels_of(group).items():
        row = [by_cell.get((problem, backend)) for backend in backends]
        times = [r.time.median_us for r in row if r is not None and r.time is not None]
        cells = [f'<th title="{escape(problem)}">{escape(label)}</th>']
        for record in row:
            if record is None or record.time is None:
                cells.append(f'<td title="{_hint(record)}"></td>')
                continue
            median, base_median = record.time.median_us, base_us.get(place(record))
            if base_median is not None:
                ratios[record.backend].append(base_median / median)
            ratio = "–" if base_median is None else f"{base_median / median:.2f}"
            best = ' class="best"' if median == min(times) else ""
            us = f"<small>{median:.1f} µs{' !' if record.doubts else ''}</small>"
            cells.append(f'<td{best} title="{_hint(record)}">{ratio}{us}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    means = "".join(
        f"<td>{geomean(own):.2f}<small>of {len(own)}</small></td>" if own else "<td></td>"
        for own in ratios.values()
    )
    # A backend's options may go on the next line.
    names = (escape(backend).replace(":", ":<wbr>").replace("=", "=<wbr>") for backend in backends)
    heads = "".join(f"<th>{name}</th>" for name in names)
    return (
        f'<div class="scroll speeds"><table><thead><tr><th>layer</th>{heads}</tr></thead>'
        f'<tbody>{"".join(rows)}<tr class="mean"><th>geomean</th>{means}</tr></tbody></table></div>'
    )


def _hint(record: Record | None) -> str:
    """Returns the hover text of a table's cell."""
    return "not measured" if record is None else hover_text(record).replace("<br>", "&#10;")


def _doubts(records: Sequence[Record]) -> str:
    """Returns the tables of all warnings, and of all records without figures with their reasons."""
    warned = [(record, warning) for record in records for warning in record.doubts]
    missing = [
        (record, f"{record.status}: {record.reason or 'no reason given'}")
        for record in records
        if record.time is None
    ]
    return _reasons("Warnings", "warning", warned) + _reasons("Without figures", "reason", missing)


def _reasons(title: str, head: str, reasons: Sequence[tuple[Record, str]]) -> str:
    """Returns a table with a row for each reason under a title with their number."""
    rows = (
        (shortened(record.name or ""), record.backend, reason, group_of(record), record.problem)
        for record, reason in reasons
    )
    heads = ["layer", "backend", head, "group", "problem"]
    cells = ([escape(text) for text in row] for row in rows)
    return f"<h3>{title} ({len(reasons)})</h3>{table(heads, cells, 'text')}" if reasons else ""


def _commands(results: Results) -> str:
    lines = commands(results)
    if not lines:
        return ""
    return (
        f"<h3>Measure again</h3><details><summary>{len(lines)} commands, one a case</summary>"
        f'<div class="scroll"><pre>{escape(chr(10).join(lines))}</pre></div></details>'
    )
