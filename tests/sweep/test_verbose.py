"""oneDNN's log: parsed, and the proof of what the backends run."""

from __future__ import annotations

import pytest
import torch

from dnnsep import Backend, Problem
from dnnsep.backends.tensors import to_channels_last
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.verbose import Log, Primitive, onednn_log

_LINE = (
    "onednn_verbose,v1,primitive,exec,cpu,convolution,brdgmm_dw:avx512_core,forward_inference,"
    "src:f32::blocked:acdb::f0 wei:f32:a:blocked:debcA16a::f0 bia:undef::undef::: "
    "dst:f32::blocked:acdb::f0,attr-scratchpad:user attr-post-ops:eltwise_relu,"
    "alg:convolution_direct,g64mb1_ic64oc64_ih112oh112kh3sh1dh0ph1_iw112ow112kw3sw1dw0pw1,0.25"
)


def test_parse() -> None:
    primitive = Primitive.parse(_LINE)
    assert primitive is not None
    assert (primitive.kind, primitive.impl) == ("convolution", "brdgmm_dw:avx512_core")
    assert primitive.weights_dims == (64, 1, 1, 3, 3)
    assert primitive.memory == {
        "src": "f32:acdb",
        "wei": "f32:debcA16a",
        "dst": "f32:acdb",
    }
    assert primitive.post_ops == "eltwise_relu"
    assert primitive.milliseconds == 0.25


@pytest.mark.parametrize(
    "line",
    [
        "",
        "something else",
        "onednn_verbose,v1,info,oneDNN v3.7.1 (commit 8d263e6)",
        _LINE.replace(",exec,", ",create:cache_miss,"),
        _LINE[:80],
    ],
)
def test_other_lines_are_not_primitives(line: str) -> None:
    assert Primitive.parse(line) is None


def test_versions_and_isa() -> None:
    log = Log(
        [
            "onednn_verbose,v1,info,oneDNN v3.7.1 (commit 8d263e6)",
            "onednn_verbose,v1,info,cpu,isa:Intel AVX2",
        ]
    )
    assert log.versions == ["oneDNN v3.7.1 (commit 8d263e6)"]
    assert log.isa == "Intel AVX2"


def _log_of(backend: Backend, problem: Problem) -> tuple[Log, Log]:
    """The logs of the preparation and of a later call."""
    data = CheckData.exact(problem)
    assert backend.supports(problem)
    with onednn_log() as setup:
        executor = backend.prepare(problem, data.weights)
    x = to_channels_last(data.x, problem.dtype)
    executor(x)
    with onednn_log() as hot:
        executor(x)
    return setup, hot


def _letters(tag: str) -> int:
    """The number of dimensions of a memory format tag such as f32:debcA16a."""
    return len({letter.lower() for letter in tag.split(":")[1] if letter.isalpha()})


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_depthwise_is_a_grouped_convolution_with_5d_weights(
    onednn_backend: Backend, dtype: str
) -> None:
    problem = Problem.parse(f"ic64oc128ih28kh3ph1_act:relu,none_{dtype}")
    _, hot = _log_of(onednn_backend, problem)
    depthwise = next(p for p in hot.primitives if p.kind == "convolution")
    assert depthwise.problem.startswith("g64mb1_ic64oc64")
    assert depthwise.weights_dims == (64, 1, 1, 3, 3)
    assert _letters(depthwise.memory["wei"]) == 5
    assert depthwise.memory["src"] == depthwise.memory["dst"] == f"{dtype}:acdb"
    if onednn_backend.name != "eager":
        assert depthwise.post_ops == "eltwise_relu"
        assert [p.kind for p in hot.primitives].count("reorder") == 0


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_backend_reorders_its_weights_when_prepared(onednn_backend: Backend, dtype: str) -> None:
    setup, hot = _log_of(onednn_backend, Problem.parse(f"ic64oc128ih28kh3ph1_{dtype}"))
    reordered = [p.problem for p in setup.primitives if p.kind == "reorder"]
    if onednn_backend.name == "eager":  # on every call instead
        assert not reordered
        assert any(p.kind == "reorder" for p in hot.primitives)
    else:
        assert "64x1x1x3x3" in reordered


_POINTWISE = {
    "ipex": ("matmul", (1, 64, 128)),
    "ipex:pointwise=inner_product": ("inner_product", (128, 64)),
    "ipex:pointwise=conv1x1": ("convolution", (128, 64, 1, 1)),
    "onednn": ("inner_product", (128, 64)),
    "eager": ("convolution", (128, 64, 1, 1)),
}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_pointwise_primitive(onednn_backend: Backend, dtype: str) -> None:
    _, hot = _log_of(onednn_backend, Problem.parse(f"ic64oc128ih28kh3ph1_{dtype}"))
    depthwise, pointwise = [p for p in hot.primitives if p.kind != "reorder"]
    assert depthwise.kind == "convolution"
    assert (pointwise.kind, pointwise.weights_dims) == _POINTWISE[onednn_backend.name]
    if pointwise.kind == "matmul":
        assert pointwise.problem == "1x784x64:1x64x128"
        assert pointwise.impl.startswith("brg_matmul")
        assert "binary_add" in pointwise.post_ops


def test_what_the_block_prints_is_not_lost_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with onednn_log() as log:
        torch.zeros(1)
    print("after", flush=True)
    assert capfd.readouterr().out == "before\nafter\n"
    assert not log.primitives
