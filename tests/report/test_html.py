"""The page's text; how it looks is test_browser.py's."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from dnnsep.cli.model import bench_model
from dnnsep.cli.sweep import sweep
from dnnsep.report.charts import bars, heat_map, roofline
from dnnsep.report.commands import MODEL_OPTIONS, OPTIONS, commands
from dnnsep.report.html import as_html
from dnnsep.report.labels import labels_of, styles_of
from dnnsep.report.table import summary
from dnnsep.sweep.results import Record, Results
from tests.report.samples import awkward_file, models_file, two_files

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "br", "wbr"}


class Page(HTMLParser):
    """The page's texts outside scripts and styles, its tags by count, and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(v) for k, v in attrs if k in ("src", "href") and str(v)[:1] != "#"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def html() -> str:
    return as_html(two_files())


def test_content(html: str) -> None:
    page = Page(html)
    assert page.loads == []
    for expected in (
        "epyc.json",
        "xeon.json",
        "AMD EPYC",
        "avx512_bf16",
        "23.5 GiB",
        "OMP_NUM_THREADS 2",
        "Measured roofs, threads 2, 4.02 GHz",
        "Rooflines",
        "bf16 batch 1 threads 2",
        "Speed against ipex",
        "load: other processes used 8% of the CPUs",
        "refused: xnnpack runs f32 only",
        "failed: the worker ended with signal 11 (SIGSEGV)",
        "incorrect: disagrees with the reference at (0, 17, 3, 5): 41.0, should be 40.0",
        "18 commands, one a case",
    ):
        assert expected in page.text
    assert html.count("Plotly.newPlot(") - html.split("<main>")[0].count("Plotly.newPlot(") == 8


def test_the_machine_is_at_the_end(html: str) -> None:
    titles = ["f32 batch", "Speed against", "Warnings", "Measure again", "Measured roofs"]
    titles += ["Machine", "Settings"]
    for section in re.findall(r'<section id="file.*?</section>', html, re.DOTALL):
        heads = [section.index(f"<h3>{title}") for title in titles]
        assert heads == sorted(heads)
        last_chart = section.rindex("Plotly.newPlot(")
        assert heads[0] < last_chart < heads[1]
        assert heads[0] < section.index("Plotly.newPlot(")


def test_a_single_file_has_its_roofline_in_its_section() -> None:
    html = as_html(two_files()[:1])
    section = html[html.index('<section id="file0">') :]
    roofline, group = (
        section.index(f"<h3>{text}") for text in ("Roofline, threads 2", "f32 batch")
    )
    assert roofline < section.index("Plotly.newPlot(") < group
    assert "Rooflines" not in Page(html).text


def test_every_file_has_an_answer_with_a_link_to_it(html: str) -> None:
    answers = re.findall(r'<section class="answer">.*?href="#(\w+)">(.*?)</a>', html)
    assert answers == [("file0", "epyc.json"), ("file1", "xeon.json")]
    assert all(html.count(f'<section id="{target}">') == 1 for target, _ in answers)


def test_plotly_is_in_the_page_once(html: str) -> None:
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    banner = re.search(r"plotly\.js v[\d.]+", script)
    assert banner is not None
    assert html.count(script) == html.count(banner[0]) == 1
    # 8 charts of 97 figures, and the tables.
    assert len(html) - len(script) < 400_000


def test_geomeans_are_the_tables(html: str) -> None:
    (_, results), _ = two_files()
    means = re.findall(r'<tr class="mean">(.*?)</tr>', html)[0]
    shown = re.findall(r"<td>([\d.]+)<small>of (\d+)", means)
    assert shown[0] == ("1.00", "9")
    in_table = re.findall(r"([\d.]+) \((\d+)\)", summary(results)[0])
    assert shown[1:] == in_table


def test_the_fastest_of_each_row_is_marked(html: str) -> None:
    (_, results), (_, other) = two_files()
    problems = {r.problem for r in results.records} | {r.problem for r in other.records}
    rows = len({r.problem for r in results.records}) + len({r.problem for r in other.records})
    assert len(problems) <= rows == html.count('<td class="best"')


def _everywhere(text: str) -> str:
    """A page of two files with the text in every place that takes one."""
    (_, results), _ = two_files()
    ok, refused = results.records[0], next(r for r in results.records if r.status == "refused")
    names = {"name": text, "backend": f"b{text}", "impls": [text], "warnings": [text]}
    changed = {
        "title": text,
        "created": text,
        "records": [
            ok.model_copy(update=names),
            refused.model_copy(update={"name": text, "reason": f'"{text}'}),
        ],
        "fingerprint": {text: {text: text}, "isa": [text]},
        "settings": {"allocator": text},
    }
    return as_html([(text, results.model_copy(update=changed))] * 2)


def test_hostile_text_is_escaped() -> None:
    html = _everywhere(HOSTILE)
    assert "<script>alert" not in html
    assert "alert(1)</script>" not in html
    page = Page(html)
    assert HOSTILE in page.text
    assert page.tags == Page(_everywhere("harmless")).tags


def test_plotly_sees_escaped_text() -> None:
    (_, results), _ = two_files()
    record = results.records[0].model_copy(update={"name": "<a>b", "backend": "<b>", "impls": []})
    styles = styles_of(["<b>"])
    for figure in (
        roofline([record], results.roofs[2], styles),
        bars([record], styles),
        heat_map([record]),
    ):
        text = json.dumps(figure).replace("<br>", "")
        assert "&lt;b&gt;" in text
        assert "<" not in text


def test_empty_results() -> None:
    empty = Results(title="nothing", fingerprint={}, settings={})
    page = Page(as_html([("empty.json", empty)]))
    assert "0 records, 0 with figures" in page.text
    assert page.tags.count("script") == 1
    assert Page(as_html([])).tags.count("section") == 0


def test_only_refused_records() -> None:
    (_, results), _ = two_files()
    refused = [r for r in results.records if r.status == "refused"]
    page = Page(as_html([("r.json", results.model_copy(update={"records": refused}))]))
    assert page.tags.count("script") == 1
    assert "Without figures (9)" in page.text


def test_a_tile_unit_is_a_ceiling_of_its_own() -> None:
    (_, results), _ = two_files()
    tiles = results.roofs[2].model_copy(update={"tile_gflops": {"bf16": 7700.0, "int8": 15500.0}})
    figure = roofline(results.records, tiles, styles_of(r.backend for r in results.records))
    assert figure is not None
    ceilings = {line["name"]: line["y"] for line in figure["data"] if "unit" in line["name"]}
    assert ceilings == {
        "vector unit f32 510 GFLOP/s": [510, 510],
        "vector unit bf16 1000 GFLOP/s": [1000, 1000],
        "tile unit bf16 7700 GFLOP/s": [7700, 7700],
    }
    slope = next(line for line in figure["data"] if line["name"].startswith("DRAM"))
    assert slope["y"][-1] == 7700  # it ends at the highest ceiling
    page = Page(as_html([("r.json", results.model_copy(update={"roofs": {2: tiles}}))]))
    assert "tile unit int8 15500.0 1927.9" in " ".join(page.text.split())


def test_a_share_that_cannot_be_right_is_a_warning() -> None:
    (_, results), _ = two_files()
    record = results.records[0]
    assert record.roof is not None
    low = record.model_copy(update={"roof": record.roof.model_copy(update={"gflops": 1.0})})
    page = Page(as_html([("r.json", results.model_copy(update={"records": [low]}))]))
    assert "Warnings (1)" in page.text
    assert "so no share is shown" in page.text
    assert "Share of the roof" not in page.text


def test_without_roofs_there_are_bars_only() -> None:
    (_, results), _ = two_files()
    bare: list[Record] = [r.model_copy(update={"roof": None}) for r in results.records]
    html = as_html([("r.json", results.model_copy(update={"roofs": {}, "records": bare}))])
    assert html.count('class="plotly-graph-div"') == 2


def test_interval_less_times_have_no_error_bar() -> None:
    (_, results), _ = two_files()
    record = results.records[0]
    assert record.time is not None
    time = record.time.model_copy(update={"low_us": None, "high_us": None})
    figure = bars([record.model_copy(update={"time": time})], styles_of([record.backend]))
    assert figure is not None
    assert figure["data"][0]["error_x"]["array"] == [None]


def test_a_backend_has_one_colour_everywhere() -> None:
    (_, results), (_, other) = two_files()
    styles = styles_of(r.backend for r in [*results.records, *other.records])
    figures = [roofline(results.records, results.roofs[2], styles), bars(other.records, styles)]
    for figure in figures:
        assert figure is not None
        for trace in figure["data"]:
            if trace["name"] in styles:
                assert trace["marker"]["color"] == styles[trace["name"]].colour
    assert len({tuple(vars(s).values()) for s in styles_of(map(str, range(24))).values()}) == 24


def test_labels_are_short_and_unique() -> None:
    _, results = awkward_file()
    labels = list(labels_of(results.records).values())
    assert len(labels) == len(set(labels)) == 4
    assert labels[3] == labels[2] + " (2)"
    assert max(map(len, labels)) <= 30


def test_commands() -> None:
    (_, results), _ = two_files()
    first = commands(results)[0]
    assert first == (
        "dnnsep sweep mb1ic32oc64ih112kh3sh1ph1_act:relu,relu --backend ipex --backend onnxruntime "
        "--backend openvino --backend xnnpack --backend eager --threads 2 --seconds 0.5"
    )
    cold = results.records[0].model_copy(update={"cache": "cold"})
    settings: dict[str, Any] = {"stages": True, "allocator": "system", "visits": 5}
    changed = results.model_copy(update={"records": [cold], "settings": settings})
    assert commands(changed) == [
        "dnnsep sweep mb1ic32oc64ih112kh3sh1ph1_act:relu,relu --backend ipex --threads 2 "
        "--cache cold --visits 5 --stages --allocator system"
    ]


def test_a_models_dtypes_and_batches_are_told_apart() -> None:
    results = models_file()
    html = as_html([("r.json", results)])
    titles = [f"{dtype} batch {n} threads 2" for n in (1, 4) for dtype in ("f32", "bf16")]
    assert [title for title in re.findall("<h3>([^<]*)</h3>", html) if "batch" in title] == titles
    assert html.count('title="net bf16 4x3x9x9">net 3x9x9</th>') == 1
    assert "Without figures (2)" in Page(html).text
    means = [line for line in summary(results) if line.startswith("geomean")]
    # A refusal is no speed: bf16 has one engine only.
    assert [line.split(", ")[1].partition(":")[0] for line in means] == [titles[0], titles[2]]


def test_a_models_command() -> None:
    assert commands(models_file())[1] == (
        "dnnsep bench-model net --input 1,3,9,9 --dtype bf16 --against onnxruntime --threads 2 "
        "--visits 3"
    )


@pytest.mark.parametrize(("command", "options"), [(sweep, OPTIONS), (bench_model, MODEL_OPTIONS)])
def test_options_and_defaults_are_the_commands(
    command: Callable[..., None], options: dict[str, tuple[str, Any]]
) -> None:
    parameters = inspect.signature(command).parameters
    for option, default in options.values():
        assert parameters[option.removeprefix("--")].default == default
