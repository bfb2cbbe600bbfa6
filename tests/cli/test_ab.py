"""``dnnsep ab`` as a user runs it: two versions, which here are mostly one and the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnnsep.sweep.pairs import PairResults

_SMALL = "mb1ic16oc16ih16kh3sh1ph1"
_OTHER = "mb1ic16oc24ih12kh3sh1ph1"
_ROOT = str(Path(__file__).parents[2])
_QUICK = ("--visits", "2", "--seconds", "0.05", "--threads", "1", "--threshold", "50")

# An old version as the worker sees it: it knows one problem less, and a backend that gives zeros.
_OLD = """
import sys
from dnnsep.problem import Problem
real = Problem.parse.__func__
def parse(cls, text):
    if "ih12" in text:
        raise ValueError(f"descriptor {text!r}: ih: unknown here")
    return real(cls, text)
Problem.parse = classmethod(parse)
"""


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dnnsep.cli", "ab", *arguments]


def _ab(*arguments: str, base: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments, "--base", base, "--new", sys.executable),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _python(folder: Path, code: str) -> str:
    """An interpreter that runs ``code`` before the worker that it is asked to run."""
    script = folder / "python"
    (folder / "before.py").write_text(
        f"import runpy, sys\n{code}\nsys.argv = sys.argv[1:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    before = folder / "before.py"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n'
        f'shift; exec {sys.executable} {before} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def test_help_has_an_example_and_imports_no_framework() -> None:
    code = (
        "import sys\n"
        "from dnnsep.cli import app\n"
        "sys.argv = ['dnnsep', 'ab', '--help']\n"
        "try: app()\n"
        "finally: assert not {'torch', 'llvmlite', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Example: dnnsep ab" in done.stdout


@pytest.mark.slow
def test_two_problems_on_one_and_the_same_version(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    done = _ab(_SMALL, _OTHER, *_QUICK, "--json", "-o", str(path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["base"] == found["new"]
    assert [case["problem"] for case in found["cases"]] == [_SMALL, _OTHER]
    for case in found["cases"]:
        assert case["verdict"] in ("same", "unsure")
        assert case["base_us"] > 0
        assert case["base_impls"] == case["new_impls"]
    saved = PairResults.model_validate_json(path.read_text())
    for trial in saved.trials:
        assert [visit.visit for visit in trial.visits] == [0, 1]
        assert all(len(visit.pairs) >= 4 for visit in trial.visits)
    assert sum(found["counts"].values()) == 2


@pytest.mark.slow
def test_a_checkout_against_this_environment_as_a_table() -> None:
    done = _ab(_SMALL, *_QUICK, "--backend", "onednn", base=_ROOT)
    assert done.returncode == 0, done.stderr
    assert f"base: {_ROOT}/dnnsep/__init__.py" in done.stderr
    assert "new / base" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 cases: 1 ")


@pytest.mark.slow
def test_what_an_old_version_does_not_know_is_a_row(tmp_path: Path) -> None:
    done = _ab(_SMALL, _OTHER, *_QUICK, "--json", base=_python(tmp_path, _OLD))
    assert done.returncode == 0, done.stderr
    known, unknown = json.loads(done.stdout)["cases"]
    assert known["verdict"] in ("same", "unsure")
    assert unknown["verdict"] == "refused"
    assert unknown["reason"].startswith(f"base: ValueError: descriptor '{_OTHER}': ih: unknown")


@pytest.mark.parametrize(
    ("code", "verdict", "reason"),
    [
        (
            "from dnnsep.sweep.check import CheckData\n"
            "CheckData.verdict = lambda self, y: (False, '7 of 9 outputs are wrong')",
            "incorrect",
            "base: 7 of 9 outputs are wrong",
        ),
        (
            "import os, signal\nfrom dnnsep.sweep.check import CheckData\n"
            "CheckData.verdict = lambda self, y: os.kill(os.getpid(), signal.SIGKILL)",
            "failed",
            "base: worker killed by SIGKILL",
        ),
        ("sys.exit('no such luck')", "failed", "base: worker exited with 1: no such luck"),
    ],
)
def test_a_version_that_is_wrong_or_dies_is_a_row_and_exit_code_1(
    code: str, verdict: str, reason: str, tmp_path: Path
) -> None:
    done = _ab(_SMALL, *_QUICK, "--json", base=_python(tmp_path, code))
    assert done.returncode == 1, done.stderr
    (case,) = json.loads(done.stdout)["cases"]
    assert case["verdict"] == verdict
    assert case["reason"] == reason
    assert case["base_us"] is None
    assert f"failed: {verdict.upper()}: {_SMALL}, fused, 1 threads: {reason}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--base", "no/such/python"], "--base no/such/python: neither a Python to run nor a"),
        (["--base", "/bin/true"], "--base /bin/true: dnnsep is not installed there"),
        (["--base", "/bin/false"], "--base /bin/false: does not run as a Python"),
        (["--base", "."], "--base .: no dnnsep in this folder"),
        (["--fail-on", "slow"], "--fail-on 'slow': must be one of slower, faster"),
        (["--engine", "dnnsep"], "only with --models"),
        (["--models", "--backend", "onednn"], "--models: takes no --backend"),
        (["--models", "--engine", "mkl"], "--engine 'mkl': must be one of"),
        (["--backend", "mkl"], "backend 'mkl': must be one of"),
        (["-o", "no/such/dir/r.json"], "no such directory"),
        (["-o", "."], "exists; choose another name"),
    ],
)
def test_bad_usage_exits_with_2_and_one_line(
    arguments: list[str], error: str, tmp_path: Path
) -> None:
    given = _command(_SMALL, "--new", sys.executable, *arguments)
    given += [] if "--base" in arguments else ["--base", sys.executable]
    done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_keeps_and_prints_the_visits_before(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    command = _command(_SMALL, _OTHER, "--base", sys.executable, "--new", sys.executable)
    command += ["--threads", "1", "--seconds", "0.05", "--visits", "50", "--json", "-o", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for_visits(path, 2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    visits = sum(len(trial.visits) for trial in _load(path).trials)
    assert 2 <= visits < 100
    assert sum(case["visits"] for case in json.loads(out)["cases"]) == visits
    assert "stopped" in error


def _load(path: Path) -> PairResults:
    return PairResults.model_validate_json(path.read_text())


def _wait_for_visits(path: Path, count: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if path.exists() and sum(len(trial.visits) for trial in _load(path).trials) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {count} visits in time")


@pytest.mark.slow
def test_models(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.ReLU())\n"
    )
    listed = tmp_path / "list.yaml"
    listed.write_text("models: ['net.py:small']\n")
    command = _command("list.yaml", "--models", "--input", "1,8,24,24", "--batch", "2", *_QUICK)
    command += ["--dtype", "f32", "--dtype", "bf16"]
    command += ["--base", sys.executable, "--new", _ROOT, "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    texts = ("2x8x24x24", "bf16 2x8x24x24")
    assert [case["problem"] for case in found["cases"]] == [f"{net}:small {text}" for text in texts]
    for case in found["cases"]:
        assert case["backend"] == "dnnsep"
        assert case["verdict"] in ("same", "unsure")
    groups = {mean["group"] for mean in found["geomeans"]}
    assert groups <= {f"dnnsep {dtype} batch 2 threads 1" for dtype in ("f32", "bf16")}
