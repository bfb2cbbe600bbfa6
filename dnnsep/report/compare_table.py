"""Shows comparisons as a table: for the terminal, as markdown, as plain dicts for JSON.

A row has a number for each thing that is to be said of it, and what it stands for is said once,
below the table.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from dnnsep.report.compare import Comparison, Verdict
from dnnsep.report.table import impl_text

_HEADINGS = ("verdict", "case", "new / base (95 %)")
_WIDTH = 80
_STYLES = {
    Verdict.SLOWER: "red",
    Verdict.INCORRECT: "red",
    Verdict.FAILED: "red",
    Verdict.FASTER: "green",
    Verdict.FIXED: "green",
    Verdict.UNSURE: "yellow",
}


def as_rich(comparisons: Sequence[Comparison]) -> Table:
    """Returns a table for the terminal, a row a case, which fits into 80 columns."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(_HEADINGS[0], min_width=12, no_wrap=True)
    table.add_column(_HEADINGS[1], overflow="fold")
    table.add_column(_HEADINGS[2], justify="right")
    for cells, comparison in zip(_rows(comparisons), comparisons, strict=True):
        table.add_row(*map(escape, cells), style=_STYLES.get(comparison.verdict, ""))
    return table


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """Returns a markdown table, a row a case, with the summary below it."""
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + " --- |" * len(_HEADINGS)]
    for row in _rows(comparisons):
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    notes = (f"\n[{number}] {note}" for number, note in _numbered(comparisons))
    return "\n".join([*lines, "", _counts(comparisons), *notes])


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
    """Counts the verdicts and says each reason once, by the number that the table has for it.

    The first line reads ``18 cases: 16 same, 1 slower, 1 unsure; 2 impl-changed``. Lines are at
    most 80 columns wide.
    """
    lines = textwrap.wrap(_counts(comparisons), _WIDTH)
    for number, note in _numbered(comparisons):
        label = f"[{number}] "
        lines += textwrap.wrap(
            note,
            _WIDTH,
            initial_indent=label,
            subsequent_indent=" " * len(label),
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def line(comparison: Comparison) -> str:
    """Returns one case as one line of text."""
    verdict, why = comparison.verdict.value.upper(), comparison.reason
    if comparison.impls is not None:
        verdict += " IMPL-CHANGED"
        why += "; " + _change(comparison.impls)
    problem, backend, threads, cache = comparison.key
    cold = " (cold)" if cache == "cold" else ""
    figures = _figures(comparison)
    return (
        f"{verdict}{' ' if figures else ''}{figures}: {comparison.name or problem + cold}, "
        f"{backend}, {threads} threads: {why}"
    )


def _counts(comparisons: Sequence[Comparison]) -> str:
    counts = Counter(c.verdict.value for c in comparisons)
    changed = sum(c.impls is not None for c in comparisons)
    text = f"{len(comparisons)} cases: " + ", ".join(f"{n} {word}" for word, n in counts.items())
    return text + (f"; {changed} impl-changed" if changed else "")


def _numbered(comparisons: Sequence[Comparison]) -> list[tuple[int, str]]:
    """Returns what is to be said below the table, each thing once, with its number."""
    notes = dict.fromkeys(note for c in comparisons for note in _notes_of(c))
    return list(enumerate(notes, 1))


def _notes_of(comparison: Comparison) -> list[str]:
    """Returns why a case is neither the same nor called, and which kernels ran instead."""
    notes = []
    if comparison.verdict not in (Verdict.SAME, Verdict.FASTER, Verdict.SLOWER):
        advice = f". To do: {comparison.advice}." if comparison.advice else ""
        notes.append(f"{comparison.verdict.value.upper()}: {comparison.reason}{advice}")
    if comparison.impls is not None:
        notes.append(f"IMPL-CHANGED: {_change(comparison.impls)}")
    return notes


def _rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Returns the texts of each row's columns."""
    numbers = {note: number for number, note in _numbered(comparisons)}
    return [_cells(c, [numbers[note] for note in _notes_of(c)]) for c in comparisons]


def _cells(comparison: Comparison, numbers: Sequence[int]) -> list[str]:
    problem, backend, threads, cache = comparison.key
    verdict = comparison.verdict.value.upper()
    if comparison.impls is not None:
        verdict += "\nIMPL-CHANGED"
    verdict += "".join(f" [{number}]" for number in numbers)
    name = f"{comparison.name}, " if comparison.name else ""
    cold = ", cold" if cache == "cold" else ""
    case = f"{name}{backend}, threads {threads}{cold}\n{problem}"
    return [verdict, case, _figures(comparison)]


def _figures(comparison: Comparison) -> str:
    """Returns the ratio with its interval as far as there are any: ``1.103 (+8.1 to +12.5 %)``."""
    if comparison.ratio is None:
        return ""
    if comparison.low is None or comparison.high is None:
        return f"{comparison.ratio:.3f}"
    low, high = (100 * (end - 1) for end in (comparison.low, comparison.high))
    return f"{comparison.ratio:.3f} ({low:+.1f} to {high:+.1f} %)"


def _change(impls: tuple[list[str], list[str]]) -> str:
    return f"{impl_text(impls[0])} -> {impl_text(impls[1])}"
