"""What is exported reads back as what was measured; no output adds markup or names a folder."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from dnnsep.cli.read import report
from dnnsep.report.export import RECORD_COLUMNS, SAMPLE_COLUMNS, export
from dnnsep.report.html import as_html
from dnnsep.report.load import load, shareable_text
from dnnsep.report.markdown import as_markdown, as_report, escaped
from dnnsep.report.table import summary
from dnnsep.sweep.results import Results, parse_model
from tests.report.samples import fleet, models_file, two_files


@pytest.fixture(scope="module")
def sample() -> Results:
    return two_files()[0][1]


@pytest.fixture
def results(sample: Results) -> Results:
    """A sweep's results, of which a test may change what is in the list of records."""
    return sample.model_copy(update={"records": list(sample.records)})


def _read(path: Path, columns: dict[str, type]) -> list[dict[str, Any]]:
    """A CSV file's rows with typed values, None where a cell is empty."""
    convert: dict[type, Callable[[str], Any]] = {str: str, int: int, float: float}
    convert[bool] = lambda text: text == "True"
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {name: convert[columns[name]](text) if text else None for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def test_records(results: Results, tmp_path: Path) -> None:
    results.records[0] = results.records[0].model_copy(update={"warnings": ["a, b", 'c "d"\ne']})
    results.fingerprint |= {"packages": {"dnnsep": "0.1.0"}, "commit": "0123456789abcdef"}
    export(results, tmp_path / "r.csv", "csv")
    rows = _read(tmp_path / "r.csv", RECORD_COLUMNS)
    assert len(rows) == len(results.records)
    assert list(rows[0]) == list(RECORD_COLUMNS)
    first, record = rows[0], results.records[0]
    assert record.time is not None
    assert record.roof is not None
    expected = {
        **{"title": "MobileNet V1", "created": results.created, "cpu": "AMD EPYC", "cores": 2},
        **{"dnnsep_version": "0.1.0 0123456789ab"},
        **{"problem": record.problem, "name": "conv2_1", "backend": "ipex", "threads": 2},
        **{"batch": 1, "in_channels": 32, "out_channels": 64, "height": 112, "width": 112},
        **{"kernel_h": 3, "stride_w": 1, "padding_left": 1, "dilation_h": 1, "bias": True},
        **{"activation_depthwise": "relu", "dtype": "f32", "channel_multiplier": 1},
        **record.time.model_dump(),
        **{"roof_gflops": record.roof.gflops, "roof_binds": record.roof.binds},
        **{"intensity": record.roof.intensity, "roof_share": record.roof_share},
        **{"gflops": record.gflops, "flops": record.flops, "status": "ok", "reason": None},
        **{"impls": "convolution:brdgmm_dw:avx512_core + matmul:brg_matmul:avx512_core"},
        **{"warnings": 'a, b; c "d"\ne', "peak_memory_bytes": 412_000_000, "output": "new"},
    }
    assert {name: first[name] for name in expected} == expected
    refused = next(row for row in rows if row["status"] == "refused")
    assert refused["reason"] == "xnnpack runs f32 only"
    assert [refused[name] for name in ("median_us", "count", "gflops", "roof_share")] == [None] * 4


@pytest.mark.parametrize(
    ("problem", "kind", "activations"),
    [
        ("mb1ic16oc16ih16kh3ph1_act:relu,silu", "separable", ("relu", "silu")),
        ("g1mb1ic3oc32ih8kh3ph1_act:relu", "convolution", (None, "relu")),
        ("g32mb1ic32oc32ih12kh3ph1_act:relu", "depthwise", ("relu", None)),
        ("linear_mb196ic768oc3072_act:gelu", "linear", (None, "gelu")),
        ("mean_mb1ic1280ih7", "mean", (None, None)),
    ],
)
def test_each_kind_of_layer(
    results: Results, tmp_path: Path, problem: str, kind: str, activations: tuple[str | None, ...]
) -> None:
    record = results.records[0].model_copy(update={"problem": problem})
    export(results.model_copy(update={"records": [record]}), tmp_path / "r.csv", "csv")
    (row,) = _read(tmp_path / "r.csv", RECORD_COLUMNS)
    found = (row["kind"], row["activation_depthwise"], row["activation_pointwise"])
    assert found == (kind, *activations)


def test_models_have_a_batch_and_a_dtype(tmp_path: Path) -> None:
    export(models_file(), tmp_path / "r.csv", "csv")
    rows = _read(tmp_path / "r.csv", RECORD_COLUMNS)
    found = [(row["batch"], row["dtype"]) for row in rows if row["backend"] == "dnnsep"]
    assert found == [(1, "f32"), (1, "bf16"), (4, "f32"), (4, "bf16")]


def test_samples(results: Results, tmp_path: Path) -> None:
    export(results, tmp_path / "s.csv", "csv", samples=True)
    rows = _read(tmp_path / "s.csv", SAMPLE_COLUMNS)
    calls = [us for r in results.records for turn in r.rounds for us in turn.calls_us]
    assert [row["us"] for row in rows] == calls
    record = results.records[0]
    assert rows[13] == {
        "machine": None,
        **{"problem": record.problem, "name": record.name, "backend": "ipex", "threads": 2},
        **{"cache": "hot", "visit": 0, "round": 1, "call": 1},
        **{"us": record.rounds[1].calls_us[1], "control_us": record.rounds[1].busy_us},
    }


@pytest.mark.parametrize("samples", [False, True])
def test_several_machines(tmp_path: Path, samples: bool) -> None:
    machines = fleet(2)
    names = [*machines]
    parts = []
    for name, results in machines.items():
        export(results, tmp_path / "one.csv", "csv", samples)
        columns = SAMPLE_COLUMNS if samples else RECORD_COLUMNS
        parts += [{**row, "machine": name} for row in _read(tmp_path / "one.csv", columns)]
    export(machines, tmp_path / "all.csv", "csv", samples)
    rows = _read(tmp_path / "all.csv", columns)
    assert rows == parts
    assert list(dict.fromkeys(row["machine"] for row in rows)) == names


def test_a_machine_named_as_a_path_does_not_show_its_folders(
    results: Results, tmp_path: Path
) -> None:
    export({"/home/me/lab/zen": results}, tmp_path / "r.csv", "csv")
    assert {row["machine"] for row in _read(tmp_path / "r.csv", RECORD_COLUMNS)} == {"zen"}


@pytest.mark.parametrize("samples", [False, True])
def test_parquet_is_the_csv_with_types(results: Results, tmp_path: Path, samples: bool) -> None:
    import pyarrow.parquet as pq

    columns = SAMPLE_COLUMNS if samples else RECORD_COLUMNS
    export(results, tmp_path / "t.csv", "csv", samples)
    export(results, tmp_path / "t.parquet", "parquet", samples)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.to_pylist() == _read(tmp_path / "t.csv", columns)
    names = {str: "string", int: "int64", float: "double", bool: "bool"}
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {name: names[kind] for name, kind in columns.items()}


@pytest.mark.parametrize("samples", [False, True])
def test_no_records_still_have_columns(tmp_path: Path, samples: bool) -> None:
    export(Results(title="t", fingerprint={}, settings={}), tmp_path / "e.csv", "csv", samples)
    columns = SAMPLE_COLUMNS if samples else RECORD_COLUMNS
    assert (tmp_path / "e.csv").read_text() == ",".join(columns) + "\n"


def test_parquet_without_pyarrow(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"parquet needs pyarrow \(extra: parquet\)"):
        export(results, tmp_path / "t.parquet", "parquet")
    assert not (tmp_path / "t.parquet").exists()


AWKWARD = (
    *("a|b", "a\\|b", "\\", "<script>alert(1)</script>", "<b>&lt;&amp;", "*a* **b** _c_ __d__ a_b"),
    *(
        "`c` ``d",
        "[x](http://e.org)",
        "![i](j)",
        "~~s~~",
        "# h",
        "- i",
        "1. i",
        "+ i",
        "$x$",
        "--- x",
    ),
    *("<!-- c", "<http://e.org>", "one\ntwo", "one\r\ntwo\rthree", "| --- |", "> q"),
    *("nul\0", "\x1b[31mred\x1b[0m", "back\b", "\x85next", "\u202etxt.exe", "\ud800", "\x7f"),
)


class _Shown(HTMLParser):
    """A page's cells and its items, each as text, and all tags that markdown's text may not add."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self.added: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th", "li", "h3"):
            self.blocks.append("")
        elif tag not in ("table", "thead", "tbody", "tr", "ul", "html", "body"):
            self.added.append(tag)

    def handle_comment(self, data: str) -> None:
        self.added.append("comment")

    def handle_data(self, data: str) -> None:
        if self.blocks:
            self.blocks[-1] += data.removesuffix("\n")


def _rendered(markdown: str) -> _Shown:
    """What a renderer that lets HTML through makes of it."""
    renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return _Shown(renderer.render(markdown))


def _named(results: Results, text: str) -> Results:
    """The results with a text in every place that takes one."""
    names = {"name": text, "backend": text, "impls": [f"kind:{text}"], "warnings": [text]}
    records = [
        record.model_copy(update=names if record.time else {"name": text, "reason": text})
        for record in (results.records[0], next(r for r in results.records if r.time is None))
    ]
    changed = {"title": text, "created": text, "records": records, "settings": {text: [text]}}
    return results.model_copy(update={**changed, "fingerprint": {"cpu": text, text: {text: text}}})


@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
def test_awkward_text_in_markdown(results: Results, text: str) -> None:
    shown = _rendered(as_report([(text, _named(results, text))]))
    assert shown.added == []
    columns = 10
    line = " ".join(shareable_text(text).split())
    assert shown.blocks[0] == line
    table = shown.blocks[shown.blocks.index("problem") :]
    first, second = table[columns : 2 * columns], table[2 * columns : 3 * columns]
    assert first[0].startswith(f"{line} mb1ic32")
    assert first[2] == f"{line} (ipex)"
    assert first[3] == line
    assert second[3] == f"incorrect: {line}"
    assert any(item.startswith("warning, 1 of 2 records: ") for item in table[3 * columns :])


@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    line = " ".join(shareable_text(text).split())
    for markdown in (f"- x {escaped(line)}", f"| h |\n| --- |\n| {escaped(line)} |"):
        shown = _rendered(markdown)
        assert shown.added == []
        assert shown.blocks[-1].removeprefix("x ") == line


def test_ordinary_text_is_not_escaped() -> None:
    for text in (
        "conv2_1 mb1ic32_act:relu,relu",
        "brgemm:avx512_core + jit",
        "95 % (1.2 to 3)",
        "",
    ):
        assert escaped(text) == text


@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
def test_awkward_text_in_html(results: Results, text: str) -> None:
    page = as_html([(text, _named(results, text))])
    plain = as_html([("x", _named(results, "x"))])
    assert _tags(page) == _tags(plain)
    assert unescape(page).count(shareable_text(text)) >= 8
    page.encode("utf-8")
    # plotly's own script is as it is.
    assert not set(_own(page)) & set(map(chr, (*range(9), *range(11, 32), *range(127, 160))))


@pytest.mark.parametrize("to", ["csv", "parquet"])
@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
def test_awkward_text_in_exports(
    results: Results, tmp_path: Path, text: str, samples: bool, to: Any
) -> None:
    import pyarrow.parquet as pq

    named = _named(results, text)
    export(named, tmp_path / "t", to, samples)
    columns = SAMPLE_COLUMNS if samples else RECORD_COLUMNS
    rows = pq.read_table(tmp_path / "t").to_pylist() if to == "parquet" else []
    rows = rows or _read(tmp_path / "t", columns)
    calls = sum(len(turn.calls_us) for record in named.records for turn in record.rounds)
    assert len(rows) == (calls if samples else 2)
    assert {row["name"] for row in rows} == {shareable_text(text)}
    assert rows[0]["backend"] == shareable_text(text)


def _tags(page: str) -> list[str]:
    tags: list[str] = []

    class _Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            # Chart texts are cut into lines, and names into parts, as long as they happen to be.
            tags.extend([tag] if tag not in ("br", "wbr") else [])

    _Tags().feed(page)
    return tags


def _own(page: str) -> str:
    """A page without plotly."""
    from plotly.offline import get_plotlyjs

    return page.replace(get_plotlyjs(), "")


def _private(folder: str) -> Iterator[str]:
    """Texts with a path in a folder, as they are in settings, variables, reasons and warnings."""
    yield f"{folder}/file.py"
    yield f'  File "{folder}/My Files/file.py", line 3, in f'
    yield f"{folder}/file.py:3: error: '{folder}/a b/file.py' (see {folder}/log.txt)"
    yield f"LD={folder}/a.so:{folder}/b.so,file://{folder}/c.so -I{folder}/include {folder}/"
    yield f"[{folder}/x, {folder}]"


@pytest.mark.parametrize("of_home", [False, True])
def test_no_output_names_a_folder(results: Results, tmp_path: Path, of_home: bool) -> None:
    import pyarrow.parquet as pq

    folder = str(Path.home() if of_home else tmp_path / "deep" / "er")
    path = tmp_path / "r.json"
    outputs = []
    for text in _private(folder):
        _named(results, text).model_copy(update={"created": results.created}).save(path)
        loaded = load(path)
        outputs += [_own(as_html([(text, loaded)])), as_report([(text, loaded)])]
        outputs += [as_markdown(loaded)]
        for samples in (False, True):
            export(loaded, tmp_path / "t.csv", "csv", samples)
            export(loaded, tmp_path / "t.parquet", "parquet", samples)
            outputs.append((tmp_path / "t.csv").read_text())
            outputs.append(str(pq.read_table(tmp_path / "t.parquet").to_pylist()))
    for output in outputs:
        for private in (folder, str(tmp_path), str(Path.home())):
            assert private not in unescape(output).replace("\\", "")
    assert all("file.py" in output for output in outputs[:7])


def test_the_report_command_names_no_folder(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = {"config": [f"{tmp_path}/My Files/sweep.yaml"], "models": f"{tmp_path}/net.py:f"}
    environment = {"environment": {"LD_PRELOAD": f"{tmp_path}/a.so:{tmp_path}/b.so"}}
    changed = {"settings": private, "fingerprint": results.fingerprint | environment}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        results.model_copy(update=changed).save(tmp_path / folder / "r.json")
    files = [tmp_path / "one" / "r.json", tmp_path / "two" / "r.json"]
    for output_format in ("html", "markdown"):
        report(files, tmp_path / "out", output_format)
        text = _own((tmp_path / "out").read_text())
        assert str(tmp_path) not in text
        assert "My Files" not in text
        assert "r.json (2)" in text
    report(files, tmp_path / "out", "html")
    assert all(name in (tmp_path / "out").read_text() for name in ("sweep.yaml", "a.so:b.so"))


def test_models_from_files_stay_apart() -> None:
    results = models_file()
    first, second = results.records[0], results.records[2]
    assert parse_model(second.problem)[2] == "bf16"
    problems = ("/home/a b/net.py:f 1x3x9x9", "/home/c/net.py:f 1x3x9x9", "net.py:f 1x3x9x9")
    records = [first.model_copy(update={"problem": problem}) for problem in problems]
    records.append(second.model_copy(update={"problem": "/home/c/net.py:f bf16 1x3x9x9"}))
    text = as_markdown(results.model_copy(update={"records": records}))
    for shown in ("net.py:f 1x3", "net.py:f (2) 1x3", "net.py:f (3) 1x3", "net.py:f (2) bf16 1x3"):
        assert f"| {shown}x9x9 |" in text
    assert "home" not in text


@pytest.mark.parametrize(
    "text",
    [
        *("FLOP/byte", "and/or", "1/2/3", "read + written, GB/s", "https://a.org/b/c", "a /b", "/"),
        *("</script>", "../home/a", "./a/b", "brgemm:avx512/x", "timm:hf_hub:a/b", "(a)/b", "/ x"),
    ],
)
def test_what_is_no_path_stays(text: str) -> None:
    assert shareable_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *[("/root", "~"), ("/home/al", "~"), ("x=/home/al/", "x=~"), ("/home/al/.cache/x", "x")],
        *[
            ("in /root.", "in ~."),
            ("/home/a.b/x", "x"),
            ("/home//al//x y", "x y"),
            ("/root/a", "a"),
        ],
        *[("//a//b", "b"), ("C:\\Users\\al\\x.dll", "x.dll"), ("/rooted/x", "x")],
    ],
)
def test_what_is_left_of_a_path(text: str, shown: str) -> None:
    assert shareable_text(text) == shown


def test_summaries_are_in_markdown(results: Results) -> None:
    for line in summary(results):
        assert f"- {escaped(line)}" in as_markdown(results)
