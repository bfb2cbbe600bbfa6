"""Shows the histories of cases: as a table, as markdown, as a page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from rich.table import Table

from dnnsep.report.history import Change, Series
from dnnsep.report.markdown import escaped
from dnnsep.report.page import page

_HEADS = ("case", "machine", "nights", "last µs", "change", "p", "from", "first version")
# A smaller p-value is none that a distribution's tail can be trusted with.
_LEAST_P = 1e-9
_SLOWER, _FASTER = "#b22", "#275"


def rows(series: Sequence[Series]) -> list[tuple[str, ...]]:
    """Returns a row for each change, the latest first, then one for each case without one."""
    changed = [(change, one) for one in series for change in one.changes]
    changed.sort(key=lambda pair: pair[0].moment, reverse=True)
    found = [
        (*_case(one), _percent(change), _p(change), change.created, change.version)
        for change, one in changed
    ]
    for one in series:
        if not one.changes:
            found.append((*_case(one), "none" if one.enough else "too few nights", "", "", ""))
    return found


def _case(series: Series) -> tuple[str, ...]:
    last = f"{series.nights[-1].median_us:.1f}"
    return series.title, series.machine, str(len(series.nights)), last


def _percent(change: Change) -> str:
    return f"{change.ratio - 1:+.1%}"


def _p(change: Change) -> str:
    return f"{change.p_value:.1g}" if change.p_value >= _LEAST_P else f"<{_LEAST_P:g}"


def summary(series: Sequence[Series]) -> str:
    """Returns in one line how many cases changed, and the first version that made one slower."""
    slower = [c for one in series for c in one.changes if c.is_slower]
    faster = [c for one in series for c in one.changes if not c.is_slower]
    text = f"{len(series)} cases: {len(slower)} changes to slower, {len(faster)} to faster"
    if slower:
        first = min(slower, key=lambda change: change.moment)
        text += f"; the first slower one from {first.created}, {first.version or 'version unknown'}"
    return text


def as_rich(series: Sequence[Series]) -> Table:
    """Returns the rows as a table for a terminal."""
    table = Table(*_HEADS)
    for row in rows(series):
        table.add_row(*row)
    return table


def as_markdown(series: Sequence[Series]) -> str:
    """Returns the rows as a markdown table, with the summary below."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + " --- |" * len(_HEADS)]
    lines += ["| " + " | ".join(map(escaped, row)) + " |" for row in rows(series)]
    return "\n".join([*lines, "", f"- {escaped(summary(series))}"])


def as_dicts(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Returns the series as JSON can hold them."""
    return [asdict(one) for one in series]


def as_html(series: Sequence[Series]) -> str:
    """Returns one page: the summary, the rows, then a chart for each case, those that changed
    first."""
    head = "".join(f"<th>{escape(text)}</th>" for text in _HEADS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows(series)
    )
    table = (
        f'<div class="scroll text"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    ordered = sorted(series, key=lambda one: not one.changes)
    charts = [_chart(one) for one in ordered]
    answer = f'<section class="answer"><p>{escape(summary(series))}</p></section>'
    return page("dnnsep: history", [answer, table, *charts])


def _chart(series: Series) -> str:
    from plotly import graph_objects as plotly
    from plotly.io import to_html

    nights = series.nights
    # plotly ignores offsets, so that all times are given in UTC.
    times = [night.moment.isoformat() for night in nights]
    figure = plotly.Figure(
        plotly.Scatter(
            x=times,
            y=[night.median_us for night in nights],
            text=[escape(night.version) for night in nights],
            mode="lines+markers",
        )
    )
    for change in series.changes:
        colour, x = _SLOWER if change.is_slower else _FASTER, times[change.index]
        figure.add_vline(x=x, line_color=colour, line_dash="dot")
        text = f"{_percent(change)} {escape(change.version)}".strip()
        figure.add_annotation(x=x, y=1, yref="paper", text=text, font_color=colour)
    figure.update_layout(
        height=260,
        margin={"l": 56, "r": 8, "t": 24, "b": 40},
        yaxis={"title": "median µs", "rangemode": "tozero"},
        showlegend=False,
        template="plotly_white",
    )
    config = {"responsive": True, "displayModeBar": False}
    drawn = to_html(figure, config, include_plotlyjs=False, full_html=False)
    return f"<h3>{escape(series.title)}</h3><p class=note>{escape(series.machine)}</p>{drawn}"
