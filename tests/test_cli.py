"""The commands, each run as a user runs it."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dnnsep.backends import BACKENDS
from dnnsep.host import cachefiles
from dnnsep.report.backends import as_table
from dnnsep.report.explain import as_text as explain_as_text
from dnnsep.sweep.results import Results
from tests.conftest import HAS_IPEX

BACKEND = "ipex" if HAS_IPEX else "onednn"
SMALL = "mb1ic16oc16ih16kh3ph1"


def _dnnsep(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dnnsep.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False
    )


def _json(*arguments: str) -> Any:
    done = _dnnsep(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "command",
    ["", "sweep", "compare", "report", "export", "explain", "cost", "machine", "backends"],
)
def test_help_has_an_example_and_imports_no_framework(command: str) -> None:
    code = (
        "import sys\n"
        "from dnnsep.cli import app\n"
        f"sys.argv = ['dnnsep', {command!r}, '--help'] if {command!r} else ['dnnsep', '--help']\n"
        "try: app()\n"
        "finally: assert not {'torch', 'plotly', 'llvmlite', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    if command:
        assert f"Example: dnnsep {command}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["cost", "ic4ih8kh3"], "descriptor 'ic4ih8kh3': oc: missing"),
        (["explain", "ic4oc4ih1kh3"], "height=1: with padding 0+0"),
        (["explain", SMALL, "--backend", "mkl"], "backend 'mkl': must be one of"),
        (["sweep", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["sweep", SMALL, "--backend", "ipex:fast=1"], "unknown option 'fast'"),
        (["sweep", SMALL, "--dtype", "f16"], "'f16' is not one of 'f32', 'bf16'"),
        (["sweep", SMALL, "--threads", "0"], "greater than or equal to 1"),
        (["sweep", SMALL, "--resume"], "name the results to go on with"),
        (["sweep", SMALL, "-o", "no/such/dir/r.json"], "no such directory"),
        (["sweep"], "Missing argument"),
    ],
)
def test_bad_usage_exits_with_2_and_no_traceback(
    arguments: list[str], error: str, tmp_path: Path
) -> None:
    done = _dnnsep(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert error in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_cost() -> None:
    (found,) = _json("cost", "mb1ic3oc64ih228kh5sh2", "--json")
    assert found["ordinary"]["parameters"] == 4864
    assert found["separable"]["parameters"] == 334
    assert found["output_shape"] == [1, 64, 112, 112]
    table = _dnnsep("cost", "mb1ic3oc64ih228kh5sh2").stdout
    assert "93.13 %" in table
    assert "4864" in table


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_explain(dtype: str) -> None:
    found = _json(
        "explain", "mb1ic64oc128ih28kh3ph1", "--backend", BACKEND, "--dtype", dtype, "--json"
    )
    depthwise, pointwise = found["hot"]
    assert depthwise["kind"] == "convolution"
    assert depthwise["weights_dims"] == [64, 1, 1, 3, 3]
    assert pointwise["kind"] == ("matmul" if BACKEND == "ipex" else "inner_product")
    assert found["reorders"] == 0
    assert found["correct"]
    assert found["versions"]["onednn"][0].startswith("oneDNN v3.")


def test_explain_says_why_not() -> None:
    problem = "ic16oc8ih4iw33kh1kw15pw7ph0_bf16"
    done = _dnnsep("explain", problem, "--backend", "onednn")
    assert done.returncode == 1
    assert "refused: oneDNN hangs" in done.stderr


def test_explain_shows_the_fused_kernels_plan_and_code() -> None:
    problem = "mb1ic64oc128ih56kh3ph1"
    found = _json("explain", problem, "--backend", "fused", "--threads", "2", "--json")
    assert found["correct"]
    taken, *others = found["plans"]
    assert taken["by_model"]
    assert taken["chosen"] == "by model"
    assert taken["pixel_parts"] * taken["channel_parts"] == 2
    assert all(sum(p["cycles"].values()) >= sum(taken["cycles"].values()) for p in others)
    console = Console(file=io.StringIO(), width=150)
    console.print(explain_as_text(found))
    assert "taken: by model" in console.file.getvalue()  # type: ignore[attr-defined]
    fused = ("explain", problem, "--backend", "fused", "--dump")
    assert "call" in _dnnsep(*fused, "ir").stdout
    assert "vfmadd" in _dnnsep(*fused, "asm").stdout
    other = _dnnsep("explain", problem, "--backend", "onednn", "--dump", "asm")
    assert other.returncode == 2
    assert "not of onednn" in other.stderr


@pytest.mark.slow
def test_a_tuned_plan_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cachefiles.VARIABLE, str(tmp_path))
    problem = "mb1ic64oc128ih28kh3ph1"
    tuned = _json("tune", problem, "--threads", "2", "--json")
    assert tuned["threads"] == 2
    assert tuned["best"]["tile"] in [plan["tile"] for plan in tuned["plans"]]
    assert all(plan["us"] > 0 for plan in tuned["plans"])
    taken = _json("explain", problem, "--backend", "fused", "--threads", "2", "--json")["plans"][0]
    if tuned["kept"]:  # the machine was quiet
        assert {name: taken[name] for name in tuned["best"]} == tuned["best"]
    assert taken["chosen"] == ("measured" if tuned["kept"] else "by model")
    assert "us, tiles of" in _dnnsep("tune", problem).stdout
    assert _dnnsep("tune", "mb1ic64oc").returncode == 2


@pytest.mark.slow
def test_backends() -> None:
    found = _json("backends", "--run", "--json")
    answers = found["backends"]
    assert set(answers) == set(BACKENDS)
    assert ("unavailable" not in answers["ipex"]) == HAS_IPEX
    if not HAS_IPEX:
        assert "intel-extension-for-pytorch" in answers["ipex"]["unavailable"]
    assert answers["onednn"]["onednn"][0].startswith("oneDNN v3.")
    assert "torch" in found["machine"]["packages"]
    console = Console(file=io.StringIO(), width=150)
    console.print(as_table(found))
    assert "onednn" in console.file.getvalue()  # type: ignore[attr-defined]


def _sweep(path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Results]:
    done = _dnnsep("sweep", *arguments, "--seconds", "0.02", "-o", str(path))
    return done, Results.load(path)


@pytest.mark.slow
def test_sweep(tmp_path: Path) -> None:
    config = tmp_path / "s.yaml"
    config.write_text(
        f"title: small\nproblems:\n  - {{name: first, shape: {SMALL}}}\n"
        "  - ic1oc8ih4iw5kh3kw7sh1sw2ph1pw1\n"
        f"backends: [{BACKEND}, eager, reference, auto]\nthreads: [1, 2]\n"
    )
    done, results = _sweep(tmp_path / "r.json", str(config), "--format", "csv", "--stages")
    assert done.returncode == 0, done.stderr
    assert len(results.records) == 2 * 2 * 4
    by_key = {record.key: record for record in results.records}
    first = by_key["mb1ic16oc16ih16kh3sh1ph1", BACKEND, 1, "hot"]
    assert first.status == "ok"
    assert first.name == "first"
    assert first.check == "exactly equal to the reference"
    assert first.flops == 2 * 16 * 16 * 16 * (9 + 16)
    assert first.time is not None
    assert first.time.count == sum(len(r.calls_us) for r in first.rounds)
    assert first.roof is not None
    assert set(results.roofs) == {1, 2}
    assert first.gflops == pytest.approx(first.flops / first.time.median_us / 1000, abs=1e-3)
    assert first.impls[0].startswith("convolution:brdgmm_dw")
    assert set(first.stages) == {"depthwise", "pointwise"}
    assert by_key[first.problem, "auto", 1, "hot"].ran_on == "fused"
    refused = [r for r in results.records if r.status == "refused"]
    assert {r.backend for r in refused} == {BACKEND, "eager"}
    assert all("unwritten" in (r.reason or "") for r in refused)
    assert results.fingerprint["packages"]["torch"]
    assert results.workers[BACKEND]["pages_kept"]
    shown = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(shown) == len(results.records)
    assert done.stdout.splitlines()[0].startswith("problem,threads")


@pytest.mark.slow
@pytest.mark.parametrize("output_format", ["table", "markdown", "json"])
def test_sweep_formats(tmp_path: Path, output_format: str) -> None:
    done, results = _sweep(
        tmp_path / "r.json", SMALL, "--backend", "eager", "--format", output_format
    )
    assert done.returncode == 0, done.stderr
    assert "eager" in done.stdout
    if output_format == "json":
        assert Results.model_validate_json(done.stdout) == results


def test_sweep_list_measures_nothing(tmp_path: Path) -> None:
    done = _dnnsep("sweep", SMALL, "--batch", "4", "--dtype", "bf16", "--list", cwd=tmp_path)
    assert done.stdout.startswith("mb4ic16oc16ih16kh3sh1ph1_bf16 threads ")
    assert not list(tmp_path.iterdir())


def test_a_backend_that_is_not_there_is_a_row_with_the_reason(tmp_path: Path) -> None:
    # A torch of the wrong version, as the backends see it.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "m.version = lambda name: '2.13.0' if name == 'torch' else real(name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "dnnsep.cli", "sweep", SMALL]
    command += ["--backend", "ipex", "--backend", "onednn", "--seconds", "0.02", "-o", "r.json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    ipex, onednn = Results.load(tmp_path / "r.json").records
    assert ipex.status == "refused"
    assert ("needs torch 2.8.*" if HAS_IPEX else "not installed") in (ipex.reason or "")
    assert onednn.status == "ok"


@pytest.mark.slow
def test_existing_results_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    _sweep(path, SMALL, "--backend", "eager")
    before = path.read_bytes()
    done = _dnnsep("sweep", SMALL, "--backend", "eager", "-o", str(path))
    assert done.returncode == 2
    assert "exists; add --resume" in done.stderr
    other = _dnnsep("sweep", SMALL, "--backend", "onednn", "-o", str(path), "--resume")
    assert other.returncode == 2
    assert "its settings differs (backends, seconds)" in other.stderr
    assert path.read_bytes() == before


def _start_sweep(path: Path, shapes: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dnnsep.cli", "sweep", *shapes, "--backend", "eager"]
    command += ["--backend", "onednn", "--seconds", "0.3", "-o", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for_records(path: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and len(Results.load(path).records) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} records in time")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_sweep_resumes(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "r.json"
    shapes = [f"mb1ic16oc16ih{size}kh3ph1" for size in range(12, 24, 2)]
    process = _start_sweep(path, shapes)
    _wait_for_records(path, 4)
    process.send_signal(how)
    code = process.wait()
    assert code == (130 if how == signal.SIGINT else -how)
    before = Results.load(path)
    assert 4 <= len(before.records) < 12
    resumed = _start_sweep_and_wait(path, shapes)
    assert resumed == 0
    after = Results.load(path)
    assert after.records[: len(before.records)] == before.records
    assert len({record.key for record in after.records}) == len(after.records) == 12
    assert all(record.status == "ok" for record in after.records)


def _start_sweep_and_wait(path: Path, shapes: list[str]) -> int:
    done = _dnnsep(
        "sweep", *shapes, "--backend", "eager", "--backend", "onednn", "--seconds", "0.3",
        "-o", str(path), "--resume",
    )  # fmt: skip
    return done.returncode


@pytest.mark.slow
def test_machine() -> None:
    found = _json("machine", "--threads", "1", "--json")
    (roofs,) = found["roofs"]
    assert roofs["threads"] == 1
    assert roofs["fma_gflops"]["f32"] > 1
    assert found["fingerprint"]["cpu"]
    assert found["dots"]["fma_f32"]["gflops_128"] > 1
    shown = _dnnsep("machine", "--threads", "1").stdout
    assert "DRAM" in shown
    assert "fma_f32" in shown


@pytest.mark.slow
def test_compare_flags_another_kernel(tmp_path: Path) -> None:
    """oneDNN held to AVX2 picks other kernels: said in any case, an error only where asked for."""
    base, new = tmp_path / "base.json", tmp_path / "new.json"
    _sweep(base, SMALL, "--backend", "onednn")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-m", "dnnsep.cli", "sweep", SMALL, "--backend", "onednn"]
    command += ["--seconds", "0.02", "-o", str(new)]
    subprocess.run(command, capture_output=True, env=environment, check=True)
    done = _dnnsep("compare", str(base), str(new))
    assert done.returncode == 0, done.stderr
    assert "IMPL-CHANGED" in done.stdout
    failed = _dnnsep("compare", str(base), str(new), "--fail-on", "slower,impl-changed")
    assert failed.returncode == 1
    assert failed.stderr.startswith("failed: ")
    (case,) = _json("compare", str(base), str(new), "--json")["cases"]
    assert "avx512" in " ".join(case["impls"][0])
    assert "avx512" not in " ".join(case["impls"][1])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["compare", "a.json", "b.json"], "a.json: No such file"),
        (["compare", "x.json", "x.json", "--fail-on", "slow"], "fail-on 'slow': must be one of"),
        (["report", "a.json"], "a.json: No such file"),
        (["export", "a.json"], "a.json: No such file"),
    ],
)
def test_results_that_are_not_there(arguments: list[str], error: str, tmp_path: Path) -> None:
    Results(title="t", fingerprint={}, settings={}).save(tmp_path / "x.json")
    done = _dnnsep(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.slow
def test_report_and_export(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    _sweep(path, SMALL, "--backend", "eager", "--backend", "onednn")
    done = _dnnsep("report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert SMALL[:10] in (tmp_path / "report.html").read_text()
    markdown = _dnnsep("report", "r.json", "--format", "markdown", cwd=tmp_path).stdout
    assert markdown.startswith("### r.json")
    for to, samples in (("csv", []), ("parquet", ["--samples"])):
        done = _dnnsep("export", "r.json", "--to", to, *samples, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(list(csv.DictReader((tmp_path / "r.csv").open()))) == 2
    assert (tmp_path / "r.samples.parquet").stat().st_size > 0
    unwritable = _dnnsep("report", "r.json", "-o", "no/such/dir.html", cwd=tmp_path)
    assert unwritable.returncode == 2
    assert "No such file or directory" in unwritable.stderr
