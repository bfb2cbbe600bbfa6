"""Shows results as markdown, for a pull request: their answer, and a table.

Texts of the results are escaped, so that they show as they are and add no markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dnnsep.report.answer import answer_of, sentences
from dnnsep.report.load import shareable, shareable_text
from dnnsep.report.machine import head
from dnnsep.report.matrix import Matrix, matrix_of
from dnnsep.report.table import HEADINGS, Row, rows, summary
from dnnsep.sweep.results import Results

# A backslash is no escape before < and & in every dialect.
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# Within a word an underscore is no markup; $ begins a formula in some dialects.
_MARKUP = re.compile(r"[\\`*\[\]|~#$<>&]|(?<![^\W_])_|_(?![^\W_])")
# What makes a line of its own of a text that begins with it.
_MARKER = re.compile(r"^(\d*)([-+.)])(?=\s|$)")


def as_report(files: Sequence[tuple[str, Results]]) -> str:
    """Returns the results of one or more files, each under its label: answer, then table."""
    files = [(shareable_text(label), shareable(results)) for label, results in files]
    matrix = matrix_of(files)
    compared = [_machines(matrix), *_changes(matrix)] if matrix else []
    parts = (
        f"### {escaped(label)}\n\n{_answer(results)}\n\n{_table(results)}"
        for label, results in files
    )
    return "\n\n".join([*compared, *parts, *_all_roofs(files)])


def _machines(matrix: Matrix) -> str:
    """Returns the table of problems by machines, with a star where the winner changes."""
    lines = [
        "### Which backend is the fastest where",
        "",
        "| problem | " + " | ".join(map(escaped, matrix.machines)) + " |",
        "|" + " --- |" * (1 + len(matrix.machines)),
    ]
    for line in matrix.lines:
        cells = ("" if cell is None else escaped(str(cell)) for cell in line.cells)
        star = " \\*" if line.changes else ""
        lines.append("| " + " | ".join([escaped(line.title) + star, *cells]) + " |")
    return "\n".join([*lines, "", _item(matrix.summary)])


def _changes(matrix: Matrix) -> list[str]:
    """Returns the list of the problems whose winner changes, under a heading; none without one."""
    if not matrix.changes:
        return []
    items = (_item(f"{line.title}: {matrix.wins_text(line)}") for line in matrix.changes)
    note = escaped(matrix.clear_text)
    title = f"### Where the winner changes ({len(matrix.changes)})"
    return ["\n".join([title, "", note, "", *items])]


def _all_roofs(files: Sequence[tuple[str, Results]]) -> list[str]:
    """Returns the list of the machines' roofs, under a heading; none for one, or without a roof."""
    items = [
        _item(f"{label}: {head(roofs)}")
        for label, results in files
        for roofs in results.roofs.values()
    ]
    return ["\n".join(["### Measured roofs", "", *items])] if items and len(files) > 1 else []


def as_markdown(results: Results) -> str:
    """Returns a markdown table, a row a record, with the summary below it."""
    return _table(shareable(results))


def escaped(text: str) -> str:
    """Returns text on one line that markdown shows as it is."""
    line = " ".join(text.split())
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), line)


def _answer(results: Results) -> str:
    """Returns the answer as a list, what it lists itself set in below."""
    return "\n".join(
        f"  {_item(line.text)}" if line.is_item else _item(line.text)
        for line in sentences(answer_of(results))
    )


def _item(text: str) -> str:
    """Returns text as an item of a list."""
    return "- " + _MARKER.sub(r"\1\\\2", escaped(text))


def _table(results: Results) -> str:
    lines_of_table = rows(results)
    shown = [name for name in HEADINGS if _says_something(name, lines_of_table)]
    lines = [
        "| " + " | ".join(HEADINGS[name] for name in shown) + " |",
        "|" + " --- |" * len(shown),
        *(
            "| " + " | ".join(escaped(getattr(row, name)) for name in shown) + " |"
            for row in lines_of_table
        ),
    ]
    return "\n".join([*lines, "", *map(_item, summary(results))])


def _says_something(name: str, shown: Sequence[Row]) -> bool:
    """Returns whether a column is needed: stages and caches are where they are not the usual."""
    if name == "stages":
        return any(row.stages for row in shown)
    return name != "cache" or any(row.cache != "hot" for row in shown)
