"""The part of a page that sets machines side by side: winners, shares of the roof, rooflines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from dnnsep.measure.roofs import Roofs
from dnnsep.report.charts import Figure, machine_map, roofline, same_axes
from dnnsep.report.labels import SYMBOLS, Style, labels_of
from dnnsep.report.matrix import Line, Matrix
from dnnsep.report.page import chart, table
from dnnsep.sweep.results import Record, Results

ROOFLINE_NOTE = (
    '<p class="note">'
    + ", ".join(f"{symbol} {dtype}" for dtype, symbol in SYMBOLS.items())
    + "; bytes count input, weights and output once</p>"
)
# What a column of a chart of machines takes at least, and the names beside it, in pixels: a box
# that is narrower scrolls.
_COLUMN, _NAMES = 44, 150


def answer(matrix: Matrix | None) -> str:
    """Returns in a line how often the winner changes, under a link to where; empty without any."""
    if matrix is None:
        return ""
    link = '<p class="note">of <a href="#machines">all machines</a></p>'
    headline = escape(matrix.headline[:1].upper() + matrix.headline[1:])
    return f'<section class="answer">{link}<p>{headline}.</p></section>'


def sections(
    files: Sequence[tuple[str, Results]], matrix: Matrix | None, styles: dict[str, Style]
) -> str:
    """Returns the sections of several results, each under its label, and of their matrix; empty for
    one."""
    if len(files) < 2:
        return ""
    shown = [] if matrix is None else [_winners(matrix), _changes(matrix), _shares(matrix)]
    return "".join([*shown, _rooflines(files, styles)])


def roofline_of(roofs: Roofs, records: Sequence[Record], styles: dict[str, Style]) -> Figure | None:
    """Returns the roofline chart of the records on as many threads as the roofs are of."""
    return roofline([r for r in records if r.threads == roofs.threads], roofs, styles)


def _winners(matrix: Matrix) -> str:
    """Returns the table of problems by machines."""
    rows = (
        [escape(line.title) + (" *" if line.changes else "")]
        + ["" if cell is None else escape(str(cell)) for cell in line.cells]
        for line in matrix.lines
    )
    return (
        '<h2 id="machines">Which backend is the fastest where</h2>'
        f"<p>{escape(matrix.summary)}</p>"
        '<p class="note">the fastest backend, how many times as long the next one takes, the share '
        "of the roof; * where it is not the same on all</p>"
        + table(["problem", *matrix.machines], rows, "matrix")
    )


def _changes(matrix: Matrix) -> str:
    """Returns the list of the problems whose winner is not the same everywhere."""
    changes = matrix.changes
    if not changes:
        return ""
    items = "".join(
        f"<li><b>{escape(line.title)}</b>: {escape(matrix.wins_text(line))}</li>"
        for line in changes
    )
    return (
        f"<h3>Where the winner changes ({len(changes)})</h3>"
        f'<p class="note">{escape(matrix.clear_text)}</p>'
        f'<div class="scroll"><ul>{items}</ul></div>'
    )


def _shares(matrix: Matrix) -> str:
    """Returns a chart a group of the share of the roof that the fastest backend reaches; empty
    without a share."""
    groups: dict[str, list[Line]] = {}
    for line in matrix.lines:
        groups.setdefault(line.group, []).append(line)
    width = _NAMES + _COLUMN * len(matrix.machines)
    charts = "".join(
        f'<div class="wide"><div style="min-width: {width}px">{drawn}</div></div>'
        for title, lines in groups.items()
        if (drawn := chart(f"<h4>{escape(title)}</h4>", _share_map(matrix, lines)))
    )
    return (
        "<h3>Share of the roof by machine, %</h3>"
        '<p class="note">what the fastest backend reaches of what the machine could do; empty '
        f"where there is no share</p>{charts}"
        if charts
        else ""
    )


def _share_map(matrix: Matrix, lines: Sequence[Line]) -> Figure | None:
    cells = [[None if cell is None else cell.record for cell in line.cells] for line in lines]
    firsts = [next(record for record in row if record is not None) for row in cells]
    labels = labels_of(firsts)
    return machine_map(matrix.machines, [labels[record.problem] for record in firsts], cells)


def _rooflines(files: Sequence[tuple[str, Results]], styles: dict[str, Style]) -> str:
    """Returns the rooflines of all files, side by side where there is room; empty without one."""
    drawn = list(_drawn(files, styles))
    if not drawn:
        return ""
    same_axes([figure for _, figure in drawn])
    charts = "".join(f"<div>{chart(head, figure)}</div>" for head, figure in drawn)
    # The number of columns may not depend on what follows, since a chart takes the width that is
    # there when it is drawn.
    grid = f'<div class="multiples" style="--count: {len(drawn)}">'
    return f"<h2>Rooflines</h2>{ROOFLINE_NOTE}{grid}{charts}</div>"


def _drawn(
    files: Sequence[tuple[str, Results]], styles: dict[str, Style]
) -> Iterator[tuple[str, Figure]]:
    """Yields each roofline with its heading, which leads to the file's section."""
    for index, (label, results) in enumerate(files):
        for roofs in results.roofs.values():
            figure = roofline_of(roofs, results.records, styles)
            if figure is not None:
                link = f'<a href="#file{index}">{escape(label)}</a>'
                yield f"<h4>{link}, threads {roofs.threads}</h4>", figure
