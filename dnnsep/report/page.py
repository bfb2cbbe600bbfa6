"""The frame of a page that needs no network, and the tables and charts on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dnnsep.report.charts import Figure

# Scripts and styles from this page only, and nothing from anywhere else.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)

_STYLE = """
html { overflow-y: scroll; }
body { margin: 0; font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; }
main { max-width: 1200px; margin: 0 auto; padding: 0 16px 48px; overflow-wrap: anywhere; }
h1 { font-size: 1.6em; margin: 24px 0 4px; }
h2 { font-size: 1.3em; margin: 40px 0 8px; border-bottom: 2px solid #222; }
h3 { font-size: 1.1em; margin: 28px 0 8px; }
h4 { font-size: 1em; margin: 20px 0 4px; }
p { margin: 4px 0; }
.answer { margin: 12px 0; padding: 8px 16px; background: #f4f4f4; }
.answer .item { padding-left: 1.5em; }
.note { color: #555; font-size: 13px; }
dl { display: grid; grid-template-columns: minmax(90px, max-content) 1fr; gap: 2px 16px; }
dt { color: #555; }
dd { margin: 0; }
.scroll { overflow: auto; max-height: 70vh; margin: 8px 0; }
table { border-collapse: collapse; font-size: 14px; overflow-wrap: normal; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid #ddd; }
th, td { white-space: nowrap; vertical-align: top; }
th { background: #f4f4f4; }
th:first-child { position: sticky; left: 0; }
.text th, .text td, th:first-child, td:first-child { text-align: left; }
.text td:nth-child(3) { min-width: 15em; white-space: normal; }
.matrix th, .matrix td { text-align: left; min-width: 7em; }
.matrix th { white-space: normal; overflow-wrap: anywhere; }
.matrix td:first-child { position: sticky; left: 0; background: #fff; }
.matrix td:first-child { white-space: normal; overflow-wrap: anywhere; }
.matrix td:first-child { min-width: 18em; max-width: 30em; }
@media (max-width: 700px) { .matrix td:first-child { min-width: 8em; max-width: 9em; } }
.multiples { display: grid; gap: 16px; --least: max(340px, 100% / var(--count) - 16px); }
.multiples { grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least)), 1fr)); }
.multiples > div { min-width: 0; }
.wide { overflow-x: auto; }
ul { margin: 4px 0; padding-left: 1.5em; }
.speeds th { white-space: normal; }
.speeds tbody th { min-width: 5.5em; max-width: 9em; overflow-wrap: anywhere; }
td small { display: block; color: #555; }
td.best { background: #e3f2ea; font-weight: bold; }
tr.mean th, tr.mean td { border-top: 2px solid #222; }
pre { background: #f4f4f4; padding: 8px; margin: 0; font-size: 13px; overflow-wrap: normal; }
summary { cursor: pointer; margin: 8px 0; }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """Returns a page of sections, which are HTML, under a title, which is not; figures of plotly in
    them work without a network."""
    from plotly.offline import get_plotlyjs

    shown = escape(title)
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{shown}</title><style>{_STYLE}</style>",
        f"<script>{get_plotlyjs()}</script></head><body><main><h1>{shown}</h1>",
        *sections,
        "</main></body></html>\n",
    ]
    return "\n".join(lines)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Returns a table in a box of its own that scrolls; cells are HTML, headings are not."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll {kind}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def chart(head: str, figure: Figure | None) -> str:
    """Returns a figure under its heading; empty where there is nothing to draw."""
    from plotly.io import to_html

    if figure is None:
        return ""
    config = {"responsive": True, "displayModeBar": False}
    return head + str(to_html(figure, config, include_plotlyjs=False, full_html=False))
