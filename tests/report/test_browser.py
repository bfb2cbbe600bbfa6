"""The report in a real browser, on a wide and on a narrow screen. Needs chromium and its driver."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from dnnsep.report import history_page
from dnnsep.report.history import Night, Point, histories
from dnnsep.report.html import as_html
from tests.report.samples import awkward_file, fleet, two_files

pytestmark = pytest.mark.browser

WIDTHS = (1280, 400)
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# 2 rooflines, and bars and a heat map for each of 3 groups.
_CHARTS = 8

_ALL_DRAWN = """
const charts = [...document.querySelectorAll('.js-plotly-plot, .plotly-graph-div')];
return charts.length > 0 && charts.every(c => c.querySelector('.point, .points path, .hm image'));
"""

# Texts that the reader must be able to tell apart, as [what, left, top, right, bottom].
_BOXES = """
const chart = arguments[0];
const found = [];
const add = (what, element) => {
  const box = element.getBoundingClientRect();
  if (box.width && box.height) found.push([what, box.left, box.top, box.right, box.bottom]);
};
for (const name of ['.legend', '.xtitle', '.ytitle', '.plot .gridlayer'])
  for (const element of chart.querySelectorAll(name)) add(name, element);
for (const name of ['.xtick text', '.ytick text'])
  for (const element of chart.querySelectorAll(name))
    add(name + ' ' + element.textContent, element);
return found;
"""

# What is in a box that scrolls may be wider than the screen.
_HEADINGS = """
return [...document.querySelectorAll('h1, h2, h3, h4, p, dl, .scroll, .wide, .js-plotly-plot')]
  .filter(e => e.checkVisibility() && !e.parentElement.closest('.scroll, .wide')).map(e => {
  const box = e.getBoundingClientRect();
  return [e.tagName + ' ' + e.className, box.left, box.top, box.right, box.bottom];
});
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in (*_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The addresses of a usual page, of one with much that does not fit, of a history, and of pages
    of few and of many machines."""
    folder = tmp_path_factory.mktemp("report")
    history = history_page.as_html(histories(_points(), rate=5e-4))
    (folder / "history.html").write_text(history, encoding="utf-8")
    reports = {"usual": two_files(), "awkward": [awkward_file()]}
    reports |= {"fleet": list(fleet().items()), "many": list(fleet(9).items())}
    for name, files in reports.items():
        (folder / f"{name}.html").write_text(as_html(files), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in (*reports, "history")}


def _points() -> Iterator[Point]:
    """A case of thirty nights that became slower, and one that did not."""
    for case in ("with a name that is longer than a phone is wide, by a good deal", "short"):
        key = ("mb1ic8oc8ih4kh1sh1ph0", "fused", 2, "hot")
        for night in range(30):
            slower = 1.3 if case == "short" and night > 20 else 1.0
            created = f"2026-01-{night + 1:02d}T02:00:00+00:00"
            us = 10 * slower + 0.05 * (night % 3)
            yield Point(case, key, case, Night(created, f"0.1.{night}", us))


def _open(driver: Any, address: str, width: int) -> None:
    """Open a page at a width in CSS pixels and wait until every chart is drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    # A window of the browser cannot be as narrow as a phone.
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.get(address)
    WebDriverWait(driver, 60).until(lambda d: d.execute_script(_ALL_DRAWN))


@pytest.fixture(params=WIDTHS)
def opened(request: pytest.FixtureRequest, driver: Any, pages: dict[str, str]) -> Any:
    """The browser with the usual page open at one of the widths."""
    _open(driver, pages["usual"], request.param)
    return driver


@pytest.fixture(
    params=[
        (page, width)
        for page in ("usual", "awkward", "history", "fleet", "many")
        for width in WIDTHS
    ]
)
def either(request: pytest.FixtureRequest, driver: Any, pages: dict[str, str]) -> Any:
    """The browser with one of the pages open at one of the widths."""
    page, width = request.param
    _open(driver, pages[page], width)
    return driver


def test_no_console_errors_and_no_network(either: Any) -> None:
    assert either.get_log("browser") == []
    asked = either.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert asked == []


def test_the_answer_is_seen_first(opened: Any) -> None:
    first, chart = opened.execute_script(
        "return ['.answer p:nth-child(3)', '.js-plotly-plot'].map("
        "s => document.querySelector(s).getBoundingClientRect().bottom)"
    )
    assert 0 < first < chart
    assert first < 450  # by how much it is faster is in the upper half of the screen
    text = opened.find_element("css selector", ".answer").text
    assert "Fastest: " in text
    assert "Machine: AMD EPYC" in text


def test_every_chart_is_drawn(opened: Any) -> None:
    def count(selector: str) -> int:
        return len(opened.find_elements("css selector", selector))

    assert count(".js-plotly-plot") == _CHARTS
    assert count(".js-plotly-plot .svg-container > .main-svg:first-child") == _CHARTS
    shown = [r for _, results in two_files() for r in results.records if r.time is not None]
    assert count(".scatterlayer .points path") == len(shown)
    assert count(".barlayer .point") == len(shown)
    assert count(".barlayer .errorbar") == len(shown)
    assert count(".heatmaplayer .hm image") == 3
    assert count(".heatmaplayer .heatmap-label text") == len(shown)


def test_nothing_is_wider_than_the_screen(either: Any) -> None:
    width, wanted = either.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    )
    assert wanted <= width
    for what, left, _, right, _ in either.execute_script(_HEADINGS):
        assert left >= 0, what
        assert right <= width + 1, what


def test_blocks_do_not_overlap(either: Any) -> None:
    boxes = either.execute_script(_HEADINGS)
    for (first, *box), (second, *other) in pairwise(boxes):
        # A chart may stand beside another.
        assert box[3] <= other[1] + 1 or box[2] <= other[0] + 1, (first, second)


def test_nothing_in_a_chart_overlaps(either: Any) -> None:
    for chart in either.find_elements("css selector", ".js-plotly-plot"):
        boxes = either.execute_script(_BOXES, chart)
        assert boxes
        outer = either.execute_script(
            "const b = arguments[0].getBoundingClientRect();"
            "return [b.left, b.top, b.right, b.bottom]",
            chart,
        )
        for i, (what, *box) in enumerate(boxes):
            assert _inside(box, outer), what
            for other, *other_box in boxes[i + 1 :]:
                assert not _overlap(box, other_box), (what, other)


def test_the_plot_has_enough_of_a_chart(either: Any) -> None:
    for chart in either.find_elements("css selector", ".js-plotly-plot"):
        plot = chart.find_element("css selector", ".draglayer .nsewdrag").rect
        assert plot["width"] >= chart.rect["width"] * 0.35
        assert plot["height"] >= 120


@pytest.mark.parametrize(("width", "columns"), [(1280, 3), (400, 1)])
def test_rooflines_stand_side_by_side(
    driver: Any, pages: dict[str, str], width: int, columns: int
) -> None:
    _open(driver, pages["fleet"], width)
    charts = driver.find_elements("css selector", ".multiples .js-plotly-plot")
    assert len(charts) == 3
    assert len({chart.rect["x"] for chart in charts}) == columns
    # Each with points, its own roofs, and the axes of the others.
    ticks = [
        [tick.text for tick in chart.find_elements("css selector", ".ytick")] for chart in charts
    ]
    assert ticks[0] == ticks[1] == ticks[2] != []
    for chart, rate in zip(charts, (510, 765, 1020), strict=True):
        assert chart.find_elements("css selector", ".scatterlayer .points path")
        legend = chart.find_element("css selector", ".legend").get_attribute("textContent")
        assert f"vector unit f32 {rate} GFLOP/s" in legend


def test_shares_by_machine_are_read_without_colour(driver: Any, pages: dict[str, str]) -> None:
    _open(driver, pages["fleet"], 400)
    first, second = driver.find_elements("css selector", ".wide .js-plotly-plot")
    for chart, count in ((first, 27), (second, 18)):
        figures = [e.text for e in chart.find_elements("css selector", ".heatmap-label text")]
        assert len(figures) == count
        assert all(figure.isdecimal() for figure in figures)
        assert len(chart.find_elements("css selector", ".xtick text")) == 3
        assert len(chart.find_elements("css selector", ".ytick text")) == 9


def test_what_is_wide_scrolls_in_its_box(driver: Any, pages: dict[str, str]) -> None:
    _open(driver, pages["many"], 400)
    for box in (".matrix", ".wide"):
        shown, wanted = driver.execute_script(
            "const box = document.querySelector(arguments[0]);"
            "return [box.clientWidth, box.scrollWidth]",
            box,
        )
        assert wanted > shown
    # The problem stays where it is while its row scrolls.
    left, problem = driver.execute_script(
        "const box = document.querySelector('.matrix'); box.scrollLeft = 300;"
        "return [box, box.querySelector('td')].map(e => e.getBoundingClientRect().left)"
    )
    assert problem == left


def test_hover_says_why_a_cell_is_empty(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    # The second group is bf16, which xnnpack, the fourth of the five columns, refuses.
    plot = opened.find_elements("css selector", ".js-plotly-plot:has(.hm) .nsewdrag")[1]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    right = int(plot.rect["width"] * 0.2)
    ActionChains(opened).move_to_element_with_offset(plot, right, 0).perform()
    hover = opened.find_element("css selector", ".hoverlayer .hovertext")
    assert "refused: xnnpack runs f32 only" in hover.text.replace("\n", " ")


def _inside(box: list[float], outer: list[float]) -> bool:
    left, top, right, bottom = box
    slack = 2
    return (
        left >= outer[0] - slack
        and top >= outer[1] - slack
        and right <= outer[2] + slack
        and bottom <= outer[3] + slack
    )


def _overlap(a: list[float], b: list[float]) -> bool:
    slack = 2
    return (
        a[0] < b[2] - slack and b[0] < a[2] - slack and a[1] < b[3] - slack and b[1] < a[3] - slack
    )
