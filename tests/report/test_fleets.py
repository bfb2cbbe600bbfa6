"""Results of several machines, read by the commands that read results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dnnsep.cli import app
from dnnsep.measure.stats import Round, Stats
from dnnsep.report.charts import machine_map, roofline, same_axes
from dnnsep.report.html import as_html
from dnnsep.report.labels import styles_of
from dnnsep.report.load import load
from dnnsep.report.matrix import matrix_of
from dnnsep.sweep.fleetresults import FleetFile, FleetResults
from dnnsep.sweep.results import Record, Results
from tests.report.samples import fleet
from tests.sweep.samples import QUIET

_FIRST, _SECOND = "mb1ic8oc8ih4kh1sh1ph0", "mb1ic16oc8ih4kh1sh1ph0"


def _record(problem: str, backend: str, us: float) -> Record:
    calls = [us * (1 + 0.001 * (n % 3)) for n in range(30)]
    rounds = [
        Round(visit=n, before=QUIET, after=QUIET, calls_us=calls)
        for n in range(8)
        for _ in range(4)
    ]
    return Record(
        problem=problem,
        backend=backend,
        threads=1,
        flops=1000,
        status="ok",
        time=Stats.of(rounds),
        rounds=rounds,
    )


def _results(times: dict[tuple[str, str], float]) -> Results:
    """Returns results with the median µs of each problem and backend."""
    records = [_record(problem, b, us) for (problem, b), us in times.items()]
    return Results(title="Some", fingerprint={"cpu": "one"}, settings={}, records=records)


def _fleet(path: Path, slower: float = 1.0) -> Path:
    machines = {
        "zen": _results(
            {
                (_FIRST, "eager"): 20,
                (_FIRST, "fused"): 10 * slower,
                (_SECOND, "eager"): 30,
                (_SECOND, "fused"): 10,
            }
        ),
        "xeon": _results({(_FIRST, "eager"): 10, (_FIRST, "fused"): 15, (_SECOND, "fused"): 7}),
    }
    FleetFile(path, FleetResults(title="Some", machines=machines)).save()
    return path


def test_the_winner_by_machine(tmp_path: Path) -> None:
    machines = FleetResults.load(_fleet(tmp_path / "f.json")).machines
    matrix = matrix_of(list(machines.items()))
    assert matrix is not None
    assert matrix.machines == ("zen", "xeon")
    first, second = matrix.lines
    assert [str(cell) for cell in first.cells] == ["fused 2.00x", "eager 1.50x"]
    assert [str(cell) for cell in second.cells] == ["fused 3.00x", "fused"]
    assert first.changes
    assert not second.changes
    assert matrix.summary == (
        "the fastest backend changes from machine to machine on 1 of 2 problems "
        "(zen: fused 2; xeon: eager 1, fused 1)"
    )


def test_there_is_no_matrix_of_one() -> None:
    results = _results({(_FIRST, "eager"): 1})
    assert matrix_of([("a", results)]) is None
    assert matrix_of([("a", results), ("b", _results({(_SECOND, "eager"): 1}))]) is None


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_report_shows_each_machine_and_the_matrix(form: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = _fleet(tmp_path / "f.json")
    done = CliRunner().invoke(app, ["report", str(path), "--format", form, "-o", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    for part in ("zen", "xeon", "Which backend is the fastest where"):
        assert part in text
    assert "fused 2.00x" in text
    assert "Where the winner changes (1)" in text
    assert "fused on zen 2.00x; eager on xeon 1.50x" in text


def test_machines_of_several_files_have_the_file_in_their_names(tmp_path: Path) -> None:
    out = tmp_path / "out.md"
    paths = [str(_fleet(tmp_path / name)) for name in ("a.json", "b.json")]
    one = tmp_path / "one.json"
    _results({(_FIRST, "eager"): 5}).save(one)
    command = ["report", *paths, str(one), "--format", "markdown", "-o", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    titles = [line[4:] for line in out.read_text().splitlines() if line.startswith("### ")]
    assert titles[2:] == ["a.json zen", "a.json xeon", "b.json zen", "b.json xeon", "one.json"]


def test_a_report_of_no_machine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    FleetFile(path, FleetResults(title="Some")).save()
    done = CliRunner().invoke(app, ["report", str(path), "-o", str(tmp_path / "out.html")])
    assert done.exit_code == 2
    assert done.stderr == f"dnnsep: {path}: machines: must not be empty\n"


def test_the_clear_changes_are_listed_first() -> None:
    third = "mb1ic32oc8ih4kh1sh1ph0"
    matrix = matrix_of(
        [
            ("zen", _results({(p, b): 10 for p in (_FIRST, _SECOND, third) for b in ("a", "b")})),
            ("xeon", _results({(_FIRST, "b"): 9})),
        ]
    )
    assert matrix is not None
    # Alone, and with intervals that overlap.
    assert matrix.wins_text(matrix.lines[0]) == (
        "a on zen 1.00x (the intervals overlap); b on xeon alone"
    )
    times = {(_FIRST, "a"): 10.0, (_FIRST, "b"): 10, (_SECOND, "a"): 10, (_SECOND, "b"): 11}
    others = {(_FIRST, "a"): 30.0, (_FIRST, "b"): 10, (_SECOND, "a"): 11, (_SECOND, "b"): 10}
    matrix = matrix_of([("zen", _results(times)), ("xeon", _results(others))])
    assert matrix is not None
    assert [line.title.split()[0] for line in matrix.changes] == [_SECOND, _FIRST]
    assert matrix.clear_text.startswith("1 of them clearly")


def test_a_backend_that_passes_on_does_not_win() -> None:
    results = _results({(_FIRST, "auto"): 9, (_FIRST, "fused"): 10})
    passed_on = results.records[0].model_copy(update={"ran_on": "fused"})
    results = results.model_copy(update={"records": [passed_on, results.records[1]]})
    matrix = matrix_of([("zen", results), ("xeon", results)])
    assert matrix is not None
    assert [str(cell) for cell in matrix.lines[0].cells] == ["fused", "fused"]


@pytest.mark.parametrize("count", [2, 3])
def test_the_page_has_a_roofline_a_machine_and_shares_by_machine(count: int) -> None:
    html = as_html(list(fleet(count).items()))
    body = html[html.index("<main>") :]
    rooflines = body[body.index("<h2>Rooflines") : body.index('<section id="file0"')]
    assert rooflines.count("Plotly.newPlot(") == count
    for name, results in fleet(count).items():
        assert f"{name}</a>, threads 2" in rooflines
        assert f"vector unit f32 {results.roofs[2].fma_gflops['f32']:.0f} GFLOP" in rooflines
    shares = body[body.index("<h3>Share of the roof by machine") : body.index("<h2>Rooflines")]
    # A chart a dtype that two machines have.
    assert shares.count("Plotly.newPlot(") == (2 if count == 3 else 1)


def test_rooflines_have_the_same_axes() -> None:
    machines = fleet(2)
    styles = styles_of(r.backend for results in machines.values() for r in results.records)
    figures = [
        figure
        for results in machines.values()
        if (figure := roofline(results.records, results.roofs[2], styles)) is not None
    ]
    same_axes(figures)
    for axis in ("x", "y"):
        (low, high), other = (figure["layout"][f"{axis}axis"]["range"] for figure in figures)
        assert [low, high] == other
        values = [v for figure in figures for line in figure["data"] for v in line[axis]]
        assert 10**low < min(values)
        assert max(values) < 10**high


def test_machine_names_that_are_cut_stay_apart() -> None:
    record = fleet(1).popitem()[1].records[0]
    names = ["x" * 60, "x" * 61]
    figure = machine_map(names, ["layer"], [[record, record]])
    assert figure is not None
    assert len(set(figure["data"][0]["x"])) == 2


def test_without_roofs_there_are_neither_shares_nor_rooflines(tmp_path: Path) -> None:
    html = as_html(list(FleetResults.load(_fleet(tmp_path / "f.json")).machines.items()))
    assert "Share of the roof by machine" not in html
    assert "<h2>Rooflines" not in html


def test_compare_pairs_by_machine(tmp_path: Path) -> None:
    base, new = _fleet(tmp_path / "b.json"), _fleet(tmp_path / "n.json", slower=2.0)
    done = CliRunner().invoke(app, ["compare", str(base), str(new), "--json"])
    assert done.exit_code == 0, done.output
    machines = json.loads(done.stdout)["machines"]
    assert list(machines) == ["zen", "xeon"]
    ratios = {
        (name, case["problem"], case["backend"]): case["ratio"]
        for name, machine in machines.items()
        for case in machine["cases"]
    }
    assert ratios["zen", _FIRST, "fused"] == pytest.approx(2, rel=0.01)
    assert ratios["xeon", _FIRST, "fused"] == pytest.approx(1, rel=0.01)


def test_a_machine_on_one_side_has_its_cases_missing_or_new(tmp_path: Path) -> None:
    base, new = tmp_path / "b.json", tmp_path / "n.json"
    results = _results({(_FIRST, "eager"): 10})
    for path, name in ((base, "gone"), (new, "fresh")):
        machines = {"zen": results, name: results}
        FleetFile(path, FleetResults(title="Some", machines=machines)).save()
    command = ["compare", str(base), str(new), "--fail-on", "missing"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)["machines"]
    verdicts = {name: [case["verdict"] for case in m["cases"]] for name, m in found.items()}
    assert verdicts == {"zen": ["same"], "fresh": ["new"], "gone": ["missing"]}
    done = CliRunner().invoke(app, command)
    assert done.stderr.startswith("failed: gone: MISSING: ")


def test_history_tells_machines_of_one_kind_apart(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    machines = {f"zen@{host}": _results({(_FIRST, "eager"): 10}) for host in ("north", "south")}
    FleetFile(path, FleetResults(title="Some", machines=machines)).save()
    done = CliRunner().invoke(app, ["history", str(path), "--format", "json"])
    assert done.exit_code == 0, done.output
    for host in ("north", "south"):
        assert f"one, ? cores, {host}" in done.stdout


def test_a_sweep_of_this_machine_is_compared_with_one_of_a_single_node(tmp_path: Path) -> None:
    """The one has no name for its machine."""
    local, fleet = tmp_path / "l.json", tmp_path / "f.json"
    results = _results({(_FIRST, "eager"): 10})
    local.write_text(results.model_dump_json())
    FleetFile(fleet, FleetResults(title="Some", machines={"zen": results})).save()
    for base, new in ((local, fleet), (fleet, local)):
        done = CliRunner().invoke(app, ["compare", str(base), str(new), "--json"])
        assert done.exit_code == 0, done.output
        machines = json.loads(done.stdout)["machines"]
        assert [case["verdict"] for case in machines["zen"]["cases"]] == ["same"]


def test_no_machine_in_both(tmp_path: Path) -> None:
    base, new = tmp_path / "b.json", tmp_path / "n.json"
    for path, name in ((base, "zen"), (new, "xeon")):
        machines = {name: _results({(_FIRST, "eager"): 1})}
        FleetFile(path, FleetResults(title="Some", machines=machines)).save()
    done = CliRunner().invoke(app, ["compare", str(base), str(new)])
    assert done.exit_code == 2
    assert "no machine is in both" in done.stderr


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_export_has_every_machine(to: str, tmp_path: Path) -> None:
    path = _fleet(tmp_path / "f.json")
    done = CliRunner().invoke(app, ["export", str(path), "--to", to])
    assert done.exit_code == 0, done.output
    if to == "csv":
        with open(tmp_path / "f.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        from pyarrow import parquet

        rows = parquet.read_table(tmp_path / "f.parquet").to_pylist()
    found = [(row["machine"], row["problem"], row["backend"]) for row in rows]
    machines = FleetResults.load(path).machines
    assert found == [(m, r.problem, r.backend) for m in machines for r in machines[m].records]


def test_what_takes_one_machine_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"f\.json: has the results of zen, xeon"):
        load(_fleet(tmp_path / "f.json"))
