"""Cases over time: planted steps are found, noise is not, and every kind of file is read.

Noise is as sweeps were seen to have: from night to night a standard deviation of 0.8 to 2 %, and 4
nights in 100 beside other work, which take 10 to 30 % longer.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from dnnsep.cli import app
from dnnsep.cli.history import history
from dnnsep.report.history import Night, Point, Series, changes_of, histories, points_of
from dnnsep.sweep.results import Results
from tests.report.test_fleets import _FIRST, _record

_NIGHTS = 60
_KEY = (_FIRST, "fused", 1, "hot")
_RATE: float = inspect.signature(history).parameters["rate"].default


def _nights(rng: np.random.Generator, step: float = 0.0, at: int = _NIGHTS) -> list[Night]:
    logs = rng.normal(0, rng.uniform(0.008, 0.02), _NIGHTS)
    beside_work = rng.random(_NIGHTS) < 0.04
    logs[beside_work] += np.log1p(rng.uniform(0.1, 0.3, beside_work.sum()))
    logs[at:] += np.log1p(step)
    return [Night(f"{n:03d}", f"v{n}", float(100 * np.exp(log))) for n, log in enumerate(logs)]


@pytest.mark.parametrize("first", [0, 400])
def test_false_alarms_are_as_rare_as_said(first: int) -> None:
    """About one of 1 000 case-nights: each night all that is known until then is looked at, and a
    change counts once. One that stands is counted on each night that it does, too, and so are the
    nights on which ``--fail-on slower`` would fail."""
    alarms = standing = failing = case_nights = 0
    for seed in range(first, first + 400):
        nights, seen = _nights(np.random.default_rng(seed)), list[int]()
        for known in range(6, _NIGHTS + 1):
            changes = changes_of(nights[:known], _RATE)
            case_nights += 1
            standing += bool(changes)
            failing += Series("one", _KEY, None, tuple(nights[:known]), changes).is_slower
            for change in changes:
                if all(abs(change.index - other) > 3 for other in seen):
                    seen.append(change.index)
                    alarms += 1
    print(f"of {case_nights}: {alarms} false alarms, {standing} standing, {failing} failing")
    assert alarms / case_nights <= 0.0012
    assert standing / case_nights <= 0.006
    assert failing / case_nights <= 0.0015


@pytest.mark.parametrize(
    ("step", "soon", "later"), [(0.05, 0.75, 0.88), (-0.05, 0.7, 0.85), (0.1, 0.96, 0.96)]
)
def test_steps_are_found(step: float, soon: float, later: float) -> None:
    """Within three nights, and within seven; by the version of the night that they came in."""
    rng = np.random.default_rng(1)
    cases, found = 200, {3: 0, 7: 0}
    for _ in range(cases):
        at = int(rng.integers(15, 50))
        nights = _nights(rng, step, at)
        for wait in found:
            found[wait] += any(
                abs(change.index - at) <= 1 and change.is_slower == (step > 0)
                for change in changes_of(nights[: at + wait], _RATE)
            )
    print(f"{step:+.0%} in {cases} cases, found by nights after it: {found}")
    assert found[3] / cases >= soon
    assert found[7] / cases >= later


def _levels(*levels: tuple[float, int]) -> list[Night]:
    """Nights of levels, each so many microseconds on so many nights, within 1 % of it."""
    times = [us * (1 + 0.01 * (n % 3 - 1)) for us, count in levels for n in range(count)]
    return [Night(f"{n:03d}", f"v{n}", us) for n, us in enumerate(times)]


def test_a_change_names_its_first_version_and_its_size() -> None:
    (change,) = changes_of(_levels((100, 12), (120, 8)), _RATE)
    assert (change.index, change.created, change.version) == (12, "012", "v12")
    assert change.ratio == pytest.approx(1.2, abs=0.01)
    assert change.is_slower
    assert change.p_value < 1e-6


@pytest.mark.parametrize(
    ("levels", "changes"),
    [
        ([(100, 60)], []),
        ([(100, 30), (130, 1), (100, 30)], []),
        ([(100, 30), (130, 2), (100, 30)], []),
        ([(100, 20), (120, 20), (90, 20)], [20, 40]),
        ([(100, 20), (110, 3), (100, 20)], [20, 23]),
        ([(100, 57), (110, 2)], []),
        ([(100, 57), (110, 3)], [57]),
        ([(100, 3), (200, 2)], []),
        ([(100, 3), (200, 3)], [3]),
        ([(100, 30), (101.5, 30)], []),
    ],
    ids=lambda given: str(given).replace(" ", ""),
)
def test_levels(levels: list[tuple[float, int]], changes: list[int]) -> None:
    found = changes_of(_levels(*levels), _RATE)
    assert [change.index for change in found] == changes


@pytest.mark.parametrize("count", [1, 6, 60])
def test_a_case_that_always_takes_the_same_does_not_change(count: int) -> None:
    assert changes_of([Night("", "", 100.0)] * count, _RATE) == ()


def test_steps_of_a_clock_that_is_exact() -> None:
    """A step of 2 % counts, and a smaller one does not, however sure it is."""
    for us, expected in ((101.9, 0), (102.1, 1)):
        nights = [Night("", "", 100.0)] * 20 + [Night("", "", us)] * 20
        assert len(changes_of(nights, _RATE)) == expected


def test_a_lower_rate_calls_less() -> None:
    nights = _levels((100, 10), (104, 4))
    (change,) = changes_of(nights, 0.05)
    assert changes_of(nights, change.p_value) == ()


def _saved(folder: Path, night: int, us: float, version: str = "0.1.0", cpu: str = "one") -> Path:
    facts = {"cpu": cpu, "cores": 2, "packages": {"dnnsep": version}}
    created = f"2026-01-{night + 1:02d}T02:00:00+00:00"
    results = Results(
        title="Nightly",
        created=created,
        fingerprint=facts,
        settings={},
        records=[_record(_FIRST, "fused", us), _record(_FIRST, "eager", 50.0)],
    )
    path = folder / f"{cpu}-{night}.json"
    results.save(path)
    return path


@pytest.fixture
def nightly(tmp_path: Path) -> Path:
    """Twelve nights, of which the last four are slower on one of the backends."""
    folder = tmp_path / "nightly"
    folder.mkdir()
    for night in range(12):
        slow = night >= 8
        _saved(folder, night, 15.0 if slow else 10.0, "0.2.0" if slow else "0.1.0")
    return folder


def test_the_first_slower_version(nightly: Path) -> None:
    done = CliRunner().invoke(app, ["history", str(nightly)])
    assert done.exit_code == 0, done.output
    assert "2 cases: 1 changes to slower, 0 to faster" in done.stdout
    assert "the first slower one from 2026-01-09T02:00:00+00:00, 0.2.0" in done.stdout


@pytest.mark.parametrize("sources", [["{}/*.json"], ["{}", "{}/one-0.json"]])
def test_patterns_and_files_twice(sources: list[str], nightly: Path) -> None:
    given = [source.format(nightly) for source in sources]
    done = CliRunner().invoke(app, ["history", *given, "--format", "json"])
    told = json.loads(done.stdout)
    assert [len(one["nights"]) for one in told] == [12, 12]
    assert [len(one["changes"]) for one in told] == [1, 0]
    assert told[0]["changes"][0]["ratio"] == pytest.approx(1.5, abs=0.01)


def _exported(folder: Path) -> list[Path]:
    """Puts exports in the place of the results in a folder."""
    for path in sorted(folder.iterdir()):
        done = CliRunner().invoke(app, ["export", str(path), "--to", "parquet"])
        assert done.exit_code == 0, done.output
        path.unlink()
    return sorted(folder.iterdir())


def test_exports_are_read(nightly: Path) -> None:
    """They tell what the results do."""
    of_results = CliRunner().invoke(app, ["history", str(nightly), "--format", "json"])
    _exported(nightly)
    of_exports = CliRunner().invoke(app, ["history", str(nightly), "--format", "json"])
    assert of_exports.exit_code == 0, of_exports.output
    assert json.loads(of_exports.stdout) == json.loads(of_results.stdout)


def test_exports_without_version_and_cores_are_read(nightly: Path) -> None:
    """As older ones are."""
    for path in _exported(nightly):
        table = parquet.read_table(path).drop_columns(["dnnsep_version", "cores"])
        parquet.write_table(table, path)
    done = CliRunner().invoke(app, ["history", str(nightly), "--format", "markdown"])
    assert done.exit_code == 0, done.output
    assert "+50.0%" in done.stdout
    assert "one, ? cores" in done.stdout
    assert "version unknown" in done.stdout


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("created", "yesterday", "created: must be a time in ISO 8601"),
        ("median_us", -1.0, "median_us: must be more than 0"),
        ("median_us", float("inf"), "median_us: must be more than 0 and finite"),
        ("cores", "two", "not written by dnnsep export"),
        ("dnnsep_version", 1, "not written by dnnsep export"),
    ],
)
def test_bad_rows_of_an_export(column: str, value: object, message: str, nightly: Path) -> None:
    path = _exported(nightly)[0]
    rows = [row | {column: value} for row in parquet.read_table(path).to_pylist()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    done = CliRunner().invoke(app, ["history", str(nightly)])
    assert done.exit_code == 2
    assert f"{path}: {message}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nights_are_in_the_order_of_their_moments() -> None:
    """Of two at the same one the later given counts; without an offset they are in UTC."""
    times = [
        "2026-01-02T01:00:00+12:00",
        "2026-01-01T14:00:00",
        "2026-01-01T15:00:00Z",
        "2026-01-01T10:00:00-05:00",
        "2026-01-01T16:00:00+00:00",
    ]
    points = [Point("one", _KEY, None, Night(time, "", 10.0)) for time in reversed(times)]
    (series,) = histories(points, _RATE)
    assert [night.created for night in series.nights] == [*times[:3], times[4]]


_RULE = "must be a time in ISO 8601, e.g. 2026-01-31T02:00:00+00:00"


@pytest.mark.parametrize("created", ["yesterday", "", "2026-13-01", "0001-01-01T00:00:00+12:00"])
def test_a_time_that_is_none_is_refused(created: str, nightly: Path) -> None:
    bad = nightly / "one-0.json"
    results = Results.load(bad)
    results.created = created
    results.save(bad)
    done = CliRunner().invoke(app, ["history", str(nightly)])
    assert done.exit_code == 2
    assert done.stderr.strip().endswith(f"{bad}: created: {_RULE}")
    assert len(done.stderr.splitlines()) == 1


def test_a_time_of_perf_that_is_none_is_refused(tmp_path: Path) -> None:
    machine = '{"dnnsep": {"fingerprint": {}, "roofs": []}}'
    path = tmp_path / "perf.json"
    path.write_text(f'{{"machine_info": {machine}, "benchmarks": [], "datetime": "yesterday"}}')
    done = CliRunner().invoke(app, ["history", str(path)])
    assert done.exit_code == 2
    assert done.stderr.strip().endswith(f"{path}: datetime: {_RULE}")


def test_machines_have_histories_of_their_own(nightly: Path) -> None:
    for night in range(12):
        _saved(nightly, night, 10.0, cpu="two")
    files = [Results.load(path) for path in nightly.iterdir()]
    series = histories((point for results in files for point in points_of(results)), _RATE)
    changes = {(one.machine, one.key[1]): len(one.changes) for one in series}
    assert changes == {
        ("one, 2 cores", "fused"): 1,
        ("one, 2 cores", "eager"): 0,
        ("two, 2 cores", "fused"): 0,
        ("two, 2 cores", "eager"): 0,
    }


def test_the_page_and_the_exit(nightly: Path, tmp_path: Path) -> None:
    page = tmp_path / "h.html"
    arguments = ["history", str(nightly), "-o", str(page), "--fail-on", "slower"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "fused threads 1, one, 2 cores: +50.0% against its fastest" in done.stderr
    text = page.read_text()
    assert "1 changes to slower" in text
    assert "+50.0% 0.2.0" in text
    assert "<td>&lt;1e-09</td>" in text


def test_p_is_shown(nightly: Path) -> None:
    def shown(form: str) -> str:
        return CliRunner().invoke(app, ["history", str(nightly), "--format", form]).stdout

    assert " | p | " in shown("markdown")
    assert " | +50.0% | &lt;1e-09 | " in shown("markdown")
    assert json.loads(shown("json"))[0]["changes"][0]["p_value"] < 1e-9
    assert " p " in shown("table")


@pytest.mark.parametrize(
    ("levels", "fails"),
    [
        ([(100, 10)], False),
        ([(100, 10), (110, 10)], True),
        ([(110, 10), (100, 10)], False),
        ([(100, 10), (120, 10), (108, 10)], True),
        ([(100, 10), (120, 10), (101, 10)], False),
        ([(120, 10), (100, 10), (112, 10)], True),
    ],
    ids=lambda given: str(given).replace(" ", ""),
)
def test_slower_is_the_newest_level_against_the_fastest_before(
    levels: list[tuple[float, int]], fails: bool
) -> None:
    nights = tuple(_levels(*levels))
    series = Series("one", _KEY, None, nights, changes_of(nights, _RATE))
    assert series.is_slower == fails


@pytest.mark.parametrize("rate", ["0", "-1", "0.5", "often"])
def test_a_rate_that_is_none_is_refused(rate: str, nightly: Path) -> None:
    assert CliRunner().invoke(app, ["history", str(nightly), "--rate", rate]).exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "none.json: no such file"),
        ("bad.json", "{}", "bad.json: title: Field required"),
        ("bad.parquet", "x", "bad.parquet: not written by dnnsep export"),
    ],
)
def test_bad_input(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    done = CliRunner().invoke(app, ["history", str(path)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
