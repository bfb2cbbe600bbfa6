"""Draws a report's charts, as the plain dicts that plotly takes.

All text in them is escaped, since plotly reads HTML.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any

from dnnsep.measure.roofs import Roofs
from dnnsep.report.labels import SYMBOLS, Style, hover_text, labels_of, shortened, unlike
from dnnsep.sweep.results import Record

Figure = dict[str, Any]

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_LINE_LENGTH = 15
# Three lines above a column.
_COLUMN_LENGTH = 3 * _LINE_LENGTH
# Beyond this ratio of the longest to the shortest time the short bars cannot be read.
_LINEAR_RANGE = 30
# What is beyond the outermost points of charts with the same axes, as a factor.
_MARGIN = 1.3
# So light that dark figures are read on both.
_SHADES = [[0, "#eff3ff"], [1, "#4292c6"]]
_FONT = {"family": "system-ui, sans-serif", "size": 12, "color": "#222"}


def roofline(records: Sequence[Record], roofs: Roofs, styles: dict[str, Style]) -> Figure | None:
    """Draws GFLOP/s over FLOP/byte, both logarithmic, below the roofs of one number of threads.

    ``records`` are those of that number of threads. Returns None where none of them has both a
    figure and a roof.
    """
    points = [r for r in records if r.gflops is not None and r.roof is not None]
    if not points:
        return None
    intensities = [r.roof.intensity for r in points if r.roof is not None]
    quantized = any(r.dtype not in ("f32", "bf16") for r in points)
    data = _roof_lines(roofs, min(intensities), max(intensities), quantized)
    in_legend = set()
    kinds = [(r.backend, r.dtype) for r in points]
    for backend, dtype in dict.fromkeys(kinds):
        own = [r for r, kind in zip(points, kinds, strict=True) if kind == (backend, dtype)]
        style = styles[backend]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escape(backend),
                "legendgroup": escape(backend),
                "showlegend": backend not in in_legend,
                "x": [r.roof.intensity for r in own if r.roof is not None],
                "y": [r.gflops for r in own],
                "hovertext": [hover_text(r) for r in own],
                "hoverinfo": "text",
                "marker": {
                    "color": style.colour,
                    "symbol": SYMBOLS[dtype] + style.symbol_suffix,
                    "size": 9,
                    "line": {"width": 1, "color": "white" if not style.symbol_suffix else None},
                },
            }
        )
        in_legend.add(backend)
    # Room for a legend with one entry a line, as on a phone.
    layout = _layout(440 + 18 * sum(line["showlegend"] for line in data))
    layout["xaxis"] |= _log(1, 2, 5) | {"title": {"text": "arithmetic intensity, FLOP/byte"}}
    layout["yaxis"] |= _log(1, 2, 5) | {"title": {"text": "GFLOP/s"}}
    return {"data": data, "layout": layout}


def bars(records: Sequence[Record], styles: dict[str, Style]) -> Figure | None:
    """Draws medians in µs with their 95 % intervals by layer and backend; None without a time."""
    labels = labels_of(records)
    timed = [(r, r.time) for r in records if r.time is not None]
    if not timed:
        return None
    data = []
    for backend in dict.fromkeys(r.backend for r, _ in timed):
        own = [(r, time) for r, time in timed if r.backend == backend]
        style = styles[backend]
        above = [None if t.high_us is None else t.high_us - t.median_us for _, t in own]
        below = [None if t.low_us is None else t.median_us - t.low_us for _, t in own]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": escape(backend),
                "y": [_tick_text(labels[r.problem]) for r, _ in own],
                "x": [t.median_us for _, t in own],
                "error_x": {
                    **{"type": "data", "symmetric": False, "array": above, "arrayminus": below},
                    **{"thickness": 1, "width": 2, "color": "#222"},
                },
                "marker": {"color": style.colour, "pattern": {"shape": style.pattern}},
                "hovertext": [hover_text(r) for r, _ in own],
                "hoverinfo": "text",
            }
        )
    medians = [time.median_us for _, time in timed]
    logarithmic = max(medians) / min(medians) > _LINEAR_RANGE
    layers = [_tick_text(label) for label in labels.values()]
    layout = _layout(80 + 20 * len(data) + len(layers) * max(32, 12 * len(data) + 8))
    layout |= {"barmode": "group", "bargap": 0.15}
    layout["xaxis"] |= {"title": {"text": "median µs a call, 95 % interval"}}
    layout["xaxis"] |= _log(1, 3) if logarithmic else {"rangemode": "tozero"}
    layout["yaxis"] |= _categories(layers) | {"showgrid": False}
    return {"data": data, "layout": layout}


def heat_map(records: Sequence[Record]) -> Figure | None:
    """Draws the share of the roof in % by layer and backend; None without a share.

    Cells without a figure are empty and say on hover why.
    """
    if all(r.roof_share is None for r in records):
        return None
    labels = labels_of(records)
    backends = list(dict.fromkeys(r.backend for r in records))
    by_cell = {(r.problem, r.backend): r for r in records}
    cells = [[by_cell.get((problem, backend)) for backend in backends] for problem in labels]
    return _shares([escape(backend) for backend in backends], list(labels.values()), cells)


def machine_map(
    machines: Sequence[str], labels: Sequence[str], cells: Sequence[Sequence[Record | None]]
) -> Figure | None:
    """Draws the share of the roof in % by layer and machine, as ``heat_map`` does by backend.

    ``cells`` has a row for each of the labels, with the record that counts on each machine.
    """
    if all(r is None or r.roof_share is None for row in cells for r in row):
        return None
    names: list[str] = []
    for machine in machines:
        names.append(unlike(shortened(machine, _COLUMN_LENGTH), names))
    columns = ("<br>".join(map(escape, textwrap.wrap(name, _LINE_LENGTH))) for name in names)
    return _shares(list(columns), labels, cells)


def same_axes(figures: Sequence[Figure]) -> None:
    """Gives logarithmic charts the same ends of their axes, so that they compare at a glance."""
    for axis in ("x", "y"):
        values = [v for figure in figures for line in figure["data"] for v in line[axis]]
        if not values:
            continue
        ends = [math.log10(min(values) / _MARGIN), math.log10(max(values) * _MARGIN)]
        for figure in figures:
            figure["layout"][f"{axis}axis"]["range"] = ends


def _shares(
    columns: Sequence[str], labels: Sequence[str], cells: Sequence[Sequence[Record | None]]
) -> Figure:
    """Draws the shares of the roof in % of rows and columns of records; ``columns`` is HTML."""
    shares = [
        [None if r is None or r.roof_share is None else 100 * r.roof_share for r in row]
        for row in cells
    ]
    layers = [_tick_text(label) for label in labels]
    data = {
        "type": "heatmap",
        "x": columns,
        "y": layers,
        "z": shares,
        "text": [["" if s is None else f"{s:.0f}" for s in row] for row in shares],
        "texttemplate": "%{text}",
        "hovertext": [
            ["not measured" if r is None else hover_text(r) for r in row] for row in cells
        ],
        "hoverinfo": "text",
        "zmin": 0,
        "zmax": 100,
        "colorscale": _SHADES,
        "textfont": {"color": "#222"},
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    # Room for the names to stand upright, as they do where they do not fit side by side.
    longest = max(len(line) for column in columns for line in column.split("<br>"))
    layout = _layout(40 + 7 * longest + 32 * len(labels))
    layout["xaxis"] |= {"side": "top", "type": "category", "showgrid": False, "dtick": 1}
    layout["xaxis"] |= {"autotickangles": [0, -90]}
    layout["yaxis"] |= _categories(layers) | {"showgrid": False}
    return {"data": [data], "layout": layout}


def _roof_lines(roofs: Roofs, least: float, most: float, quantized: bool) -> list[Figure]:
    """Draws the slope of each memory level, up to the highest ceiling, and the ceiling of each unit
    in each dtype.

    They reach beyond the intensities ``least`` and ``most``, in FLOP/byte; the ceilings of int8 are
    there where a layer is ``quantized``.
    """
    ceilings = [unit for unit in roofs.units if unit.dtype in ("f32", "bf16") or quantized]
    top = max(unit.gflops for unit in ceilings)
    fastest = max(level.gbs for level in roofs.memory)
    slowest = min(level.gbs for level in roofs.memory)
    # Far enough for every slope, and where it ends, to be in the picture.
    left, right = min(least, top / fastest) / 2, max(most, top / slowest) * 2
    lines = []
    for level, dash in zip(roofs.memory, _DASHES, strict=False):
        end = top / level.gbs
        name = f"{level.name} {level.gbs:.0f} GB/s"
        lines.append(_line(name, [left, end], [left * level.gbs, top], "#666", dash))
    for (unit, dtype, rate, _), dash in zip(ceilings, _DASHES, strict=False):
        name = f"{unit} {dtype} {rate:.0f} GFLOP/s"
        lines.append(_line(name, [rate / fastest, right], [rate, rate], "#222", dash))
    return lines


def _line(name: str, x: list[float], y: list[float], colour: str, dash: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escape(name),
        "x": x,
        "y": y,
        "hoverinfo": "name",
        "showlegend": True,
        "line": {"color": colour, "dash": dash, "width": 1.5},
    }


def _log(*digits: int) -> Figure:
    """Returns a logarithmic axis with a tick at each of the digits in every decade."""
    ticks = [digit * 10.0**power for power in range(-4, 9) for digit in digits]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.10g}" for tick in ticks]}


def _tick_text(label: str) -> str:
    """Returns a label cut into short lines, so that a phone has room for the chart beside it."""
    starts = range(0, len(label), _LINE_LENGTH)
    return "<br>".join(escape(label[start : start + _LINE_LENGTH]) for start in starts)


def _categories(names: Sequence[str]) -> Figure:
    """Returns an axis that shows every name, the first on top."""
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(names),
        "range": [len(names) - 0.5, -0.5],
        "dtick": 1,
    }


def _layout(height: int) -> Figure:
    """Returns what all charts share; ``height`` is in pixels."""
    axis = {"automargin": True, "gridcolor": "#ddd", "zeroline": False, "ticks": "outside"}
    return {
        "height": height,
        "autosize": True,
        "font": _FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": _FONT},
        # On a touch screen a finger on the chart scrolls the page.
        "dragmode": False,
        "legend": {
            **{"orientation": "h", "xref": "container", "yref": "container"},
            **{"tracegroupgap": 0, "x": 0, "xanchor": "left", "y": 0, "yanchor": "bottom"},
        },
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }
