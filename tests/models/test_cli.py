"""The commands for whole models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnnsep.block import Block
from dnnsep.cli.common import Dtype
from dnnsep.cli.model import model_cases
from tests.test_cli import _dnnsep, _json

_NET = """
import torch
from torch import nn

def block(channels, out):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out, 1),
    )

def small():
    return nn.Sequential(nn.Conv2d(3, 16, 3), block(16, 32), block(32, 32), block(32, 32))

def ordinary():
    return nn.Conv2d(3, 4, 3)

def several():
    return Several()

class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 3)

    def forward(self, x):
        y = self.convolution(x)
        return {"first": [y, y.mean((2, 3))], "second": {"argmax": y.argmax(1), "no tensor": 3}}

def unconvertible():
    return Unconvertible()

class Unconvertible(nn.Module):
    def forward(self, x):
        if torch.jit.is_tracing():
            raise RuntimeError("cannot\\nbe traced")
        return 2 * x

def broken():
    return 1 / 0

def number():
    return 1
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(_NET)
    return str(path)


@pytest.mark.slow
def test_model(net: str) -> None:
    found = _json("model", f"{net}:small", "--input", "1,3,18,18", "--json")
    assert found["flops"] == 2 * found["macs"] == sum(layer["flops"] for layer in found["layers"])
    assert found["layers"][0]["parameters"] == 448
    assert [entry["kind"] for entry in found["optimize"]] == ["convolution"] + ["separable"] * 3
    assert found["error"] < 1e-5
    table = _dnnsep("model", f"{net}:small", "--input", "1,3,18,18").stdout
    assert "3 separable layers" in table
    assert "1.0 │ Conv2d" in table.replace("  ", " ").replace("  ", " ")


def test_blocks_are_named_as_in_sweeps() -> None:
    name = "mbconv_ic8ex24oc8ih14kh3"
    (case,) = model_cases([name], None, [1], ("eager",), [2], [Dtype.bf16])
    assert case.problem == "mbconv_mb2ic8ex24oc8ih14kh3sh1 bf16 2x8x14x14"
    assert case.flops == Block.parse(name).flops * 2


@pytest.mark.slow
def test_extract(net: str, tmp_path: Path) -> None:
    path = tmp_path / "shapes.yaml"
    done = _dnnsep("extract", f"{net}:small", "--input", "1,3,18,18", "-o", str(path))
    assert done.returncode == 0
    assert "2 problems of 3 separable layers" in done.stdout
    listed = _dnnsep("sweep", str(path), "--list").stdout
    assert "mb1ic32oc32ih16kh3sh1ph1_act:relu,none" in listed
    assert "# 2.0 x2" in listed
    again = _dnnsep("extract", f"{net}:small", "--input", "1,3,18,18", "-o", str(path))
    assert again.returncode == 2
    assert "exists" in again.stderr
    none = _dnnsep("extract", f"{net}:ordinary", "--input", "1,3,9,9", "-o", str(tmp_path / "n"))
    assert none.returncode == 1
    assert "has no separable layers" in none.stderr


@pytest.mark.slow
def test_bench_model(net: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    arguments = [
        "bench-model",
        f"{net}:small",
        "--input",
        "1,3,18,18",
        "--against",
        "eager,openvino",
    ]
    done = _dnnsep(*arguments, "--seconds", "0.05", "-o", str(path))
    assert done.returncode == 0, done.stderr
    assert "geomean speed against dnnsep" in done.stdout
    records = json.loads(path.read_text())["records"]
    assert [record["backend"] for record in records] == ["dnnsep", "eager", "openvino"]
    assert all(record["status"] == "ok" and record["gflops"] > 0 for record in records)
    assert _dnnsep("report", str(path), "-o", str(tmp_path / "r.html")).returncode == 0


@pytest.mark.slow
def test_a_list_of_models_of_which_some_fail(net: str, tmp_path: Path) -> None:
    """A model that does not load is left out, a failing engine is a row, and the rest goes on."""
    models, path = tmp_path / "models.yaml", tmp_path / "r.json"
    names = [f"{net}:{name}" for name in ("broken", "several", "unconvertible", "small")]
    models.write_text("models:\n" + "".join(f"  - {name}\n" for name in names))
    arguments = ["bench-model", str(models), "--input", "1,3,18,18", "--seconds", "0.05"]
    arguments += ["--against", "eager,openvino,onnxruntime", "-o", str(path)]
    done = _dnnsep(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"left out: model '{net}:broken': ZeroDivisionError: division by zero" in done.stderr
    records = json.loads(path.read_text())["records"]
    found = {(r["problem"].split()[0], r["backend"]): r["status"] for r in records}
    assert found == {
        (name, engine): "refused" if (name, engine) in refusing else "ok"
        for refusing in [{(names[2], "openvino"), (names[2], "onnxruntime")}]
        for name in names[1:]
        for engine in ("dnnsep", "eager", "openvino", "onnxruntime")
    }
    reasons = [record["reason"] for record in records if record["status"] == "refused"]
    assert all("\n" not in reason and "does not run it: " in reason for reason in reasons)
    done = _dnnsep(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())["records"] == records


@pytest.mark.slow
def test_dtypes_and_batches(net: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    arguments = ["bench-model", f"{net}:small", "--input", "1,3,18,18", "--seconds", "0.05"]
    arguments += ["--against", "eager,openvino,onnxruntime", "-o", str(path)]
    done = _dnnsep(*arguments, "--batch", "2")
    assert done.returncode == 0, done.stderr
    first = json.loads(path.read_text())["records"]
    both = ("--dtype", "f32", "--dtype", "bf16", "--batch", "1", "--batch", "2", "--resume")
    done = _dnnsep(*arguments, *both)
    assert done.returncode == 0, done.stderr
    assert "refused: ONNX Runtime's CPU" in done.stdout
    records = json.loads(path.read_text())["records"]
    assert records[:4] == first
    found = {(r["problem"].partition(" ")[2], r["backend"]): r["status"] for r in records}
    assert found == {
        (f"{dtype}{batch}x3x18x18", engine): "refused"
        if dtype and engine == "onnxruntime"
        else "ok"
        for dtype in ("", "bf16 ")
        for batch in (1, 2)
        for engine in ("dnnsep", "eager", "openvino", "onnxruntime")
    }
    for group in ("f32 batch 1", "bf16 batch 1", "f32 batch 2", "bf16 batch 2"):
        assert f"geomean speed against dnnsep, {group} threads" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "nope.py:f"], "nope.py: No such file or directory"),
        (["model", "FILE:ordinary", "--input", "1,4,9,9"], "fails on an input of [1, 4, 9, 9]"),
        (["bench-model", "FILE:broken"], "ZeroDivisionError: division by zero"),
        (["model", "FILE:number"], "gives int, not a torch.nn.Module"),
        (["model", "resnet18", "--input", "3,x"], "--input '3,x': must be whole numbers"),
        (
            ["bench-model", "resnet18", "--against", "cuda"],
            "--against 'cuda': must be one of dnnsep",
        ),
        (["bench-model", "FILE:small", "--dtype", "f16"], "'f16' is not one of 'f32', 'bf16'"),
        (["bench-model", "FILE:small", "--batch", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_input(net: str, arguments: list[str], message: str) -> None:
    done = _dnnsep(*(argument.replace("FILE", net) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
