"""Shows comparisons as a table: for the terminal, as markdown, as plain dicts for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from dnnsep.report.compare import Comparison, Verdict
from dnnsep.report.table import impl_text

_HEADINGS = ("case", "backend", "thr", "new / base", "95 % interval", "verdict", "why")
_STYLES = {
    Verdict.SLOWER: "red",
    Verdict.INCORRECT: "red",
    Verdict.FAILED: "red",
    Verdict.FASTER: "green",
    Verdict.FIXED: "green",
    Verdict.UNSURE: "yellow",
}


def as_rich(comparisons: Sequence[Comparison]) -> Table:
    """Returns a table for the terminal, a row a case."""
    table = Table(header_style="bold")
    for heading in _HEADINGS:
        right = heading in ("thr", "new / base", "95 % interval")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for comparison in comparisons:
        table.add_row(*_cells(comparison), style=_STYLES.get(comparison.verdict, ""))
    return table


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """Returns a markdown table, a row a case, with the summary below it."""
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + " --- |" * len(_HEADINGS)]
    for comparison in comparisons:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in _cells(comparison))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", summary(comparisons)])


def as_dicts(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Returns a dict for each case that can be written as JSON."""
    return [
        {
            **dict(zip(("problem", "backend", "threads", "cache"), c.key, strict=True)),
            **{k: v for k, v in asdict(c).items() if k != "key"},
            "verdict": c.verdict.value,
        }
        for c in comparisons
    ]


def summary(comparisons: Sequence[Comparison]) -> str:
    """Counts the verdicts: ``18 cases: 16 same, 1 slower, 1 unsure; 2 impl-changed``."""
    counts = Counter(c.verdict.value for c in comparisons)
    changed = sum(c.impls is not None for c in comparisons)
    text = f"{len(comparisons)} cases: " + ", ".join(f"{n} {word}" for word, n in counts.items())
    return text + (f"; {changed} impl-changed" if changed else "")


def line(comparison: Comparison) -> str:
    """Returns one case as one line of text."""
    case, backend, threads, ratio, interval, verdict, why = _cells(comparison)
    figures = f" {ratio} ({interval})" if ratio else ""
    verdict = verdict.replace("\n", " ")
    return f"{verdict}{figures}: {case.splitlines()[0]}, {backend}, {threads} threads: {why}"


def _cells(comparison: Comparison) -> list[str]:
    """Returns the text of each column of _HEADINGS."""
    problem, backend, threads, cache = comparison.key
    verdict, why = comparison.verdict.value.upper(), comparison.reason
    if comparison.impls is not None:
        verdict += "\nIMPL-CHANGED"
        why += f"; {impl_text(comparison.impls[0])} -> {impl_text(comparison.impls[1])}"
    figures = ["", ""]
    if comparison.ratio is not None and comparison.low and comparison.high:
        interval = f"{100 * (comparison.low - 1):+.1f} to {100 * (comparison.high - 1):+.1f} %"
        figures = [f"{comparison.ratio:.3f}", interval]
    name = f"{comparison.name}\n" if comparison.name else ""
    cold = " (cold)" if cache == "cold" else ""
    return [f"{name}{problem}{cold}", backend, str(threads), *figures, verdict, why]
