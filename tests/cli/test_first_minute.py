"""What a user sees in the first minute: which backends there are, and a sweep's first rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnnsep.backends import BACKENDS, get_backend
from dnnsep.cli import look, measure
from dnnsep.report.compact import Layout, layout_of
from dnnsep.sweep import explain
from dnnsep.sweep.client import WorkerError
from dnnsep.sweep.results import Record, Results
from tests.report.samples import two_files

SMALL = "mb1ic16oc16ih16kh3ph1"


def test_backends_imports_no_framework_and_takes_a_moment() -> None:
    code = (
        "import sys\n"
        "from dnnsep.cli import app\n"
        "sys.argv = ['dnnsep', 'backends', '--json']\n"
        "try: app()\n"
        "finally: assert not {'torch', 'openvino', 'onnxruntime', 'llvmlite'} & set(sys.modules)\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 10  # a second on a quiet machine
    found = json.loads(done.stdout)
    assert found["ran"] is False
    assert list(found["backends"]) == list(BACKENDS)
    for name, answer in found["backends"].items():
        verdict = get_backend(name).available()
        assert answer == {("reason" if verdict else "unavailable"): verdict.reason}


@pytest.mark.parametrize("ran", [False, True])
def test_only_what_was_run_shows_its_onednn(
    ran: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        "onednn": {"reason": "torch 2.8", "onednn": ["oneDNN v3.7.1 (commit 8d26)"], "isa": "AVX9"},
        "ncnn": {"unavailable": "ncnn is not installed"},
    }
    monkeypatch.setattr(explain, "survey", lambda: answers)
    look.backends(run=ran)
    shown = capsys.readouterr().out
    assert ("v3.7.1" in shown) == ("AVX9" in shown) == ran
    assert ("--run" in shown) == (not ran)
    look.backends(run=ran, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["ran"], found["backends"] == answers) == (ran, ran)


def test_backends_are_started_at_once_but_not_beside_one_that_measures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy: set[str] = set()
    beside: dict[str, set[str]] = {}

    class Slow:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> Slow:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, method: str) -> dict[str, str]:
            busy.add(self.name)
            beside[self.name] = set(busy)
            time.sleep(0.2)
            busy.remove(self.name)
            if self.name == "ncnn":
                raise WorkerError("worker exited with 1")
            return {"reason": f"{method} {self.name}"}

    monkeypatch.setattr(explain, "Client", Slow)
    start = time.monotonic()
    answers = explain.survey()
    assert time.monotonic() - start < 0.2 * len(BACKENDS) / 2
    assert beside["fused"] == {"fused"}
    assert beside["auto"] == {"auto"}
    assert list(answers) == list(BACKENDS)
    assert answers["eager"] == {"reason": "start eager"}
    assert answers["ncnn"] == {"unavailable": "worker exited with 1"}


def test_rows_are_printed_as_cases_come_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    (_, results), _ = two_files()
    records, results.records = results.records, []
    rows = measure.RowPrinter(_layout_of(results, records), results)
    for end in range(5, len(records) + 1, 5):
        results.records = records[:end]
        rows.show()
        shown = capsys.readouterr().out.splitlines()
        assert len(shown) == 5 + (3 if end == 5 else 0)
    rows.finish()
    below = capsys.readouterr().out
    assert "geomean speed against ipex" in below
    assert max(map(len, below.splitlines())) <= 80


def _layout_of(results: Results, records: list[Record]) -> Layout:
    problems = {record.problem: record.name for record in records}
    backends = [record.backend for record in records]
    return layout_of(results.title, problems, backends, (1, 1), True, 80)


@pytest.mark.slow
def test_a_piped_sweep_shows_each_case_when_it_is_done_in_80_columns(tmp_path: Path) -> None:
    """The first row comes before the second case is over; no line is longer than COLUMNS."""
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", "dnnsep.cli", "sweep", SMALL, SMALL.replace("ih16", "ih18")]
    command += ["--backend", "eager", "--backend", "onednn", "--seconds", "0.5", "-o", "r.json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=-3
    )
    assert process.stdout is not None
    early = [process.stdout.readline() for _ in range(5)]
    assert early[3].startswith("mb1ic16oc16ih16")
    assert len(Results.load(tmp_path / "r.json").records) == 2
    rest = process.stdout.read().splitlines()
    assert process.wait() == 0
    assert rest[0].startswith("mb1ic16oc16ih18")
    assert max(map(len, [*early, *rest])) <= 81  # 80 and the end of the line
    wide = subprocess.run(
        [*command[:-1], "w.json", "--wide"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert "GFLOP/s" in wide.stdout
    assert "what ran" in wide.stdout
