"""Results of several machines, read by the commands that read results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dnnsep.cli import app
from dnnsep.measure.stats import Round, Stats
from dnnsep.report.load import load
from dnnsep.report.matrix import matrix_of
from dnnsep.sweep.fleetresults import FleetFile, FleetResults
from dnnsep.sweep.results import Record, Results
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
    for part in ("f.json zen", "f.json xeon", "Which backend is the fastest where"):
        assert part in text
    assert "fused 2.00x" in text


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
