"""What is refused: in one line, with exit code 2, soon and in little memory, whatever it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dnnsep.cli import app
from dnnsep.sweep.results import Record, Results
from tests.sweep.samples import rounds_of

SMALL = "mb1ic16oc16ih16kh3ph1"
HEAD = f"title: T\nproblems: [{SMALL}]\n"


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fails the test where what is inside takes longer."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(*arguments: str) -> str:
    """Returns the line that a command refuses its input with."""
    with within(20):
        result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert len(lines[0]) < 800
    assert lines[0].startswith("dnnsep: ")
    return lines[0].removeprefix("dnnsep: ")


def _nested(depth: int) -> str:
    return f"title: {'[' * depth}{']' * depth}\nproblems: [{SMALL}]\n"


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, HEAD])


def _merge_bomb(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join([*lines, HEAD])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (HEAD + "backends: [{ipex: foo}]", "ipex: its options must be a mapping"),
        (HEAD + "backends: [{ipex: [a]}]", "ipex: its options must be a mapping"),
        (HEAD + "backends: [{ipex: 3}]", "ipex: its options must be a mapping"),
        (HEAD + "backends: [{ipex: {3: 4}}]", "ipex: an option's name must be text"),
        (HEAD + "backends: [{ipex: }]", "ipex: its options must be a mapping"),
        (HEAD + "backends: [3]", "must be a backend's name"),
        ("title: T\nproblems: &p [*p]", "contains itself, by an alias"),
        (_nested(3000), "is nested deeper than 40 levels"),
        (_bomb(10), "has more than 100000 values"),
        (_merge_bomb(10), "has more than 100000 values"),
        (f"title: T\nproblems: [{SMALL.replace('ic16', 'ic' + '1' * 900)}]", "is too large"),
        (f"title: T\nproblems: [{SMALL.replace('ic16', 'ic' + '1' * 4000)}]", "at most 1000"),
        (f"title: T\nproblems: [{SMALL}]\nthreads: [{'1' * 5000}]", "of 5000 digits is too large"),
        (f"title: {'T' * 2000}\nproblems: [{SMALL}]", "title: "),
        ("title: T\nproblems:\n- axes: {ic: [], oc: 8, ih: 8, kh: 1}", "axes.ic"),
        ("title: T\nproblems:\n- axes: {}", "axes"),
        ("title: T\nproblems:\n- axes: {ic: 8, oc: 8, ih: 8, kh: 1, bias: 'no'}", "bias: must be"),
        (
            "title: T\nproblems:\n- axes: "
            + str({key: list(range(1, 101)) for key in ("ic", "oc", "ih")} | {"kh": 1}),
            "makes 1000000 problems, at most 10000",
        ),
        ("title: !!binary x\nproblems: [x]", "!!binary: a value must be text"),
        ("title: !!python/object:os.system x\nproblems: [x]", "a value must be text"),
        ("title: 2020-99-99\nproblems: [x]", "a value must be text"),
        ("title: T\n? [a, b]\n: 1\nproblems: [x]", "a key must be text"),
        (f"title: T\nproblems: [{SMALL}]\nthreads: [1000000]", "threads[0]"),
        ("\x00\x01", "not YAML"),
        ("- &a\n- *b", "not YAML"),
    ],
)
def test_sweep_files(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    line = refused("sweep", str(path), "--list")
    assert line.startswith(str(path))
    assert error in line


def test_includes_that_never_end(tmp_path: Path) -> None:
    for n in range(1200):
        text = f"title: T\nproblems: [{{include: {n + 1}.yaml}}]\n"
        (tmp_path / f"{n}.yaml").write_text(text)
    (tmp_path / "1200.yaml").write_text(HEAD)
    assert "more than 20 includes deep" in refused("sweep", str(tmp_path / "0.yaml"), "--list")


def test_includes_that_double_at_each_level(tmp_path: Path) -> None:
    for n in range(18):
        include = f"{{include: {n + 1}.yaml}}"
        (tmp_path / f"{n}.yaml").write_text(f"title: T\nproblems: [{include}, {include}]\n")
    (tmp_path / "18.yaml").write_text(HEAD)
    assert "more than 1000 files" in refused("sweep", str(tmp_path / "0.yaml"), "--list")


@pytest.mark.parametrize("name", ["x" * 300, "y" * 5000, f"{'z' * 400}.yaml", "a\nb", "\x1b[31m"])
@pytest.mark.parametrize("command", ["sweep", "cost", "explain", "model", "bench-model", "tune"])
def test_names_that_nothing_has(command: str, name: str) -> None:
    refused(command, name)


@pytest.mark.parametrize("command", ["compare", "report", "export"])
def test_results_of_which_no_file_has_the_name(command: str) -> None:
    refused(command, *["x" * 300] * (2 if command == "compare" else 1))


@pytest.mark.parametrize("suffix", [".yaml", ".bench", ".json", ".py:f"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file(tmp_path: Path, suffix: str, kind: str) -> None:
    own, _, rest = suffix.partition(":")
    path = tmp_path / f"special{own}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    command = {".json": "report", ".py": "model"}.get(own, "sweep")
    line = refused(command, f"{path}:{rest}" if rest else str(path))
    assert ("a folder" if kind == "folder" else "a device, pipe or socket") in line


def test_a_file_without_end_takes_no_memory() -> None:
    limited = f"ulimit -v {4 << 20}; exec {sys.executable} -m dnnsep.cli report /dev/zero"
    done = subprocess.run(
        ["bash", "-c", limited], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr


def test_a_model_file_that_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("raise SystemExit(0)\n")
    assert "SystemExit" in refused("model", f"{path}:make")
    path.write_text("def make():\n    raise SystemExit(0)\n")
    assert "SystemExit" in refused("model", f"{path}:make")


def test_inputs_that_fill_the_memory() -> None:
    line = refused("model", "mobilenetv2_100", "--input", "1000000000000000000,3,224,224")
    assert "has more than" in line


@pytest.mark.parametrize("command", ["sweep", "tune", "explain"])
def test_more_threads_than_any_machine_has(command: str) -> None:
    result = CliRunner().invoke(app, [command, SMALL, "--threads", "1000000"])
    assert result.exit_code == 2
    assert "--threads" in result.stderr


def results() -> dict[str, Any]:
    from dnnsep.measure.stats import Stats

    rounds = rounds_of([[10.0, 11.0]] * 8)
    record = Record(
        problem=SMALL,
        backend="onednn",
        threads=1,
        status="ok",
        flops=1000,
        time=Stats.of(rounds),
        rounds=rounds,
    )
    results = Results(title="T", fingerprint={}, settings={}, records=[record])
    content: dict[str, Any] = json.loads(results.to_json())
    return content


def _set(place: str, value: Any) -> dict[str, Any]:
    """Returns results with a field of their record, or of its time, set."""
    content = results()
    record = content["records"][0]
    owner = record["time"] if place in record["time"] and place != "rounds" else record
    owner[place] = value
    return content


@pytest.mark.parametrize(
    "content",
    [
        _set("median_us", 0),
        _set("median_us", -1),
        _set("median_us", "NaN"),
        _set("rounds", []),
        _set("time", None),
        _set("problem", "no problem"),
        _set("problem", ""),
        _set("problem", "x" * 100_000),
        _set("threads", "9" * 5000),
        [],
        {"benchmarks": [{}], "machine_info": {}},
        {"benchmarks": 3, "machine_info": {"dnnsep": {"roofs": []}}},
    ],
)
@pytest.mark.parametrize("command", ["compare", "report", "export"])
def test_results_that_are_none(tmp_path: Path, content: Any, command: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    line = refused(command, *[str(path)] * (2 if command == "compare" else 1))
    assert line.startswith(str(path))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\udcff", "", "{"])
def test_results_that_are_no_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused("report", str(path)).startswith(str(path))
