"""The command that quantises a model: what it prints, its inputs, its exit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dnnsep.cli import app

_NET = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
"""


@pytest.fixture
def net(tmp_path: Path) -> list[str]:
    (tmp_path / "net.py").write_text(_NET)
    return ["quantize", f"{tmp_path}/net.py:net", "--input", "1,3,12,10"]


def _data(folder: Path, count: int, shape: tuple[int, ...] = (3, 12, 10)) -> list[str]:
    values = np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)
    np.save(folder / "x.npy", values)
    return ["--data", str(folder / "x.npy")]


def test_layers_and_agreement(net: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*net, *_data(tmp_path, 40), "--calibrate", "4"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[1].startswith("0 ")
    assert lines[2].startswith("2 ")
    assert "optimized int8 and the quantised model: top-1 equal on 36 of 36 (100.0%)" in done.stdout


def test_as_json(net: list[str]) -> None:
    arguments = ["--calibrate", "3", "--compare", "5", "--keep", "2", "--json"]
    done = CliRunner().invoke(app, [*net, *arguments])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [entry["layer"] for entry in told["entries"]] == ["0", "2"]
    assert told["entries"][0]["sqnr"] > 20
    assert told["entries"][1]["sqnr"] is None
    assert [one["total"] for one in told["agreements"].values()] == [5, 5, 5]


def test_too_few_that_agree_are_a_failure(net: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["dnnsep.cli.quantize"], "_LEAST_SHARE", 1.01)
    done = CliRunner().invoke(app, [*net, "--calibrate", "1", "--compare", "1"])
    assert done.exit_code == 1
    assert "top-1 equal on 1 of 1" in done.stdout


@pytest.mark.parametrize(
    ("count", "shape", "message"),
    [
        (8, (3, 12, 10), "x.npy: has 8 inputs, and 8 are to calibrate"),
        (9, (3, 10, 10), "is float32 (9, 3, 10, 10), must be float32 (N, 3, 12, 10)"),
    ],
)
def test_data_that_does_not_do(
    net: list[str], tmp_path: Path, count: int, shape: tuple[int, ...], message: str
) -> None:
    done = CliRunner().invoke(app, [*net, *_data(tmp_path, count, shape)])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_file_that_is_no_array(net: list[str], tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.npy", "No such file"), (tmp_path / "net.py", "net.py")):
        done = CliRunner().invoke(app, [*net, "--data", str(path)])
        assert done.exit_code == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_module_that_is_not_there(net: list[str]) -> None:
    done = CliRunner().invoke(app, [*net, "--keep", "nine", "--compare", "1"])
    assert done.exit_code == 2
    assert "keep: the model has no module 'nine'" in done.stderr
