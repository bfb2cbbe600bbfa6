"""Engines in bf16: each computes in it, says what its input is, and is held to its bound."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dnnsep.graph.difference import difference
from dnnsep.models.engines import ENGINES, CannotRunError, WrongResultError, bind, verdict
from dnnsep.sweep.client import Client
from dnnsep.sweep.modelworker import _in_form_of

_NET = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
    )

def kept():
    from kept import OnlyCompiled

    return OnlyCompiled()

class Cancels(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 3)

    def forward(self, x):
        return nn.functional.softplus(self.convolution(x) + 1000) - 1000
"""

# In a module, whose code is one for all cases as that of timm's models is; each time that net.py is
# run makes code of its own.
_MODULE = """
import torch
from torch import nn

class OnlyCompiled(nn.Module):
    # Run eagerly, its second call is wrong.
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.sign = 1

    def forward(self, x):
        y = x * self.weight
        if not torch.compiler.is_compiling():
            y, self.sign = y * self.sign, -1
        return y
"""


class _Noting(nn.Module):
    """Notes the dtypes that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += [x.dtype, self.weight.dtype]
        return x * self.weight


def _ask(engine: str, tmp_path: Path, model: str, *texts: str) -> list[Any]:
    """A worker's answers on the model of the file, for each text of dtype and shape."""
    (tmp_path / "net.py").write_text(_NET)
    with Client(engine, worker="dnnsep.sweep.modelworker") as client:
        assert "unavailable" not in client.ask("start")
        problems = (f"{tmp_path}/net.py:{model} {text}" for text in texts)
        return [client.ask("prepare", problem=p, cpus=[0], data="") for p in problems]


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_eager_converts_model_and_input(dtype: str, torch_dtype: torch.dtype) -> None:
    model = _Noting().eval()
    call, texts = ENGINES["eager"](model, torch.ones(1, 2, 3, 3), dtype)
    assert call().dtype == torch_dtype
    assert model.seen == [torch_dtype, torch_dtype]
    assert texts[1:] == (["input:bf16 input"] if dtype == "bf16" else [])


def test_ours_takes_and_gives_f32_and_computes_in_bf16() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 16, 3).eval(), torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        expected = model(x)
        call, texts = ENGINES["dnnsep"](model, x, "bf16")
        y = call()
    assert y.dtype == torch.float32
    assert torch.equal(y, y.bfloat16().float())
    assert 0 < float((y - expected).abs().max()) < 0.1
    assert texts[-1] == "input:f32 input"


def test_ours_does_not_pass_f32_for_bf16() -> None:
    class Cancels(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.softplus(super().forward(x) + 1000) - 1000

    with pytest.raises(WrongResultError, match="left as it is: outputs differed by"):
        ENGINES["dnnsep"](Cancels(3, 16, 3).eval(), torch.randn(1, 3, 9, 9), "bf16")


def test_onnxruntime_refuses_bf16() -> None:
    assert verdict("onnxruntime")
    assert not verdict("onnxruntime", "bf16")
    assert "no bf16 kernels" in verdict("onnxruntime", "bf16").reason


class _NoTrace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch._C._get_tracing_state():
            raise RuntimeError("cannot\n  be traced" + "!" * 1000)
        return x


class _Several(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"b": [x + 1, 7], "a": {"sum": x.sum(1), "order": x.argsort(1)}}


def test_an_engine_that_cannot_convert_a_model_says_so_in_a_line() -> None:
    for engine in ("openvino", "onnxruntime"):
        with pytest.raises(CannotRunError, match=f"^{engine} does not run it: ") as raised:
            bind(engine, _NoTrace().eval(), torch.ones(1, 3), "f32")
        text = str(raised.value)
        assert "cannot be traced!" in text
        assert "\n" not in text
        assert len(text) < 350


def test_a_model_that_fails_is_no_refusal() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        bind("eager", nn.Linear(3, 4).eval(), torch.ones(1, 2), "f32")


@pytest.mark.parametrize("engine", ["eager", "openvino", "onnxruntime"])
def test_a_tree_of_results_keeps_its_form(engine: str) -> None:
    model, x = _Several().eval(), torch.tensor([[3.0, 1.0, 2.0]])
    expected = model(x)
    _, actual = bind(engine, model, x, "f32")
    restored = _in_form_of(expected, actual)
    assert difference(restored, expected) < 1e-6
    assert restored["b"][1] == 7
    assert restored["a"]["order"].tolist() == [[1, 2, 0]]


def test_a_result_with_other_tensors_keeps_its_own_form() -> None:
    expected = {"a": torch.ones(1), "b": torch.ones(1)}
    assert difference(_in_form_of(expected, [torch.ones(1)]), expected) == float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "onnxruntime"])
def test_every_engine_computes_in_each_dtype(engine: str, tmp_path: Path) -> None:
    """Alternating, since one process measures all cases of an engine."""
    texts = ("1x3x18x18", "bf16 1x3x18x18", "4x3x18x18", "bf16 4x3x18x18")
    for text, answer in zip(texts, _ask(engine, tmp_path, "small", *texts), strict=True):
        bf16 = text.startswith("bf16")
        assert answer["correct"], answer["check"]
        error = float(answer["check"].partition(" by ")[2].split()[0])
        assert (1e-4 < error < 0.1) if bf16 else error < 1e-5
        assert f"(bound {'1e-01' if bf16 else '1e-03'})" in answer["check"]
        assert any(impl.startswith("input:") for impl in answer["impls"]) == bf16


@pytest.mark.slow
@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "eager"])
def test_every_engine_computes_in_int8(engine: str, tmp_path: Path) -> None:
    (found,) = _ask(engine, tmp_path, "small", "int8 2x3x18x18")
    assert found["correct"], found["check"]
    error = float(found["check"].partition(" by ")[2].split()[0])
    assert 1e-3 < error < 0.1  # not in f32, and near it


def test_eager_refuses_int8() -> None:
    assert "computes a quantised model in f32" in verdict("eager", "int8").reason


@pytest.mark.slow
def test_inductor_compiles_the_ninth_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept.py").write_text(_MODULE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    texts = [f"{batch}x4" for batch in range(1, 11)]
    answers = _ask("inductor", tmp_path, "kept", *texts)
    assert [answer["correct"] for answer in answers] == [True] * len(texts)


@pytest.mark.slow
def test_a_result_beyond_the_bound_is_incorrect(tmp_path: Path) -> None:
    for engine in ("dnnsep", "eager"):
        right, wrong = _ask(engine, tmp_path, "Cancels", "1x3x18x18", "bf16 1x3x18x18")
        assert right["correct"]
        assert not wrong["correct"]
        assert "differ" in str(wrong["check"])


@pytest.mark.slow
def test_traced_ipex_leaves_the_callers_input_alone() -> None:
    """Else the second call of a block with a residual has another input than the first."""
    if not verdict("ipex-trace"):
        pytest.skip("IPEX is not there")
    with Client("ipex-trace", worker="dnnsep.sweep.modelworker") as client:
        client.ask("start")
        problem = "mbconv_mb1ic24ex144oc24ih56kh3sh1_act:relu6 1x24x56x56"
        answer = client.ask("prepare", problem=problem, cpus=[0], data="")
        assert answer["correct"], answer["check"]
        assert "input:a copy of the input, since traced IPEX writes into it" in answer["impls"]
