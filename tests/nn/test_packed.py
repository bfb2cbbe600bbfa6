"""Ordinary convolutions and linear layers on packed weights: torch's own answers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnsep.backends.reference import naive
from dnnsep.nn.module import SeparableConv2d
from dnnsep.nn.packed import PackedConv2d, PackedLinear
from dnnsep.weights import integer_data

# (in, out, kernel), the other arguments, the input's shape.
LAYERS: dict[str, tuple[tuple[int, int, Any], dict[str, Any], tuple[int, ...]]] = {
    "a network's first": ((3, 32, 3), {"stride": 2, "padding": 1}, (1, 3, 40, 40)),
    "one without a border": ((3, 48, 4), {"stride": 4}, (2, 3, 32, 28)),
    "a wide one": ((3, 16, 7), {"stride": 2, "padding": 3}, (1, 3, 30, 31)),
    "many channels": ((70, 33, 3), {"padding": "same"}, (1, 70, 9, 8)),
    "pointwise": ((37, 50, 1), {}, (2, 37, 7, 5)),
    "pointwise with a stride": ((16, 24, 1), {"stride": 2}, (1, 16, 9, 9)),
    "dilated": ((5, 9, (3, 2)), {"dilation": (2, 3), "padding": (1, 0)}, (2, 5, 11, 13)),
    "one row": ((20, 20, (1, 31)), {"padding": (0, 15)}, (1, 20, 1, 90)),
    "one pixel": ((64, 10, 3), {"padding": 1}, (1, 64, 1, 1)),
    "depthwise": ((24, 24, 5), {"groups": 24, "stride": 2, "padding": 2}, (1, 24, 14, 13)),
    "no bias": ((8, 8, 3), {"bias": False}, (1, 8, 6, 6)),
    "padded beyond the kernel": ((4, 6, 1), {"padding": 2}, (1, 4, 5, 5)),
}
BY_ONEDNN: dict[str, tuple[tuple[int, int, Any], dict[str, Any], tuple[int, ...]]] = {
    "groups": ((8, 12, 3), {"groups": 4, "padding": 1}, (2, 8, 9, 9)),
}


def _integers(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> Tensor:
    """Sets a layer's parameters, and gives an input, to small integers: sums are exact."""
    torch.manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape).float()
    return torch.randint(-2, 3, shape).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*LAYERS, *BY_ONEDNN])
def test_convolutions_exactly(name: str, dtype: torch.dtype) -> None:
    (c, oc, kernel), more, shape = {**LAYERS, **BY_ONEDNN}[name]
    layer = nn.Conv2d(c, oc, kernel, **more).eval()
    x = _integers(layer, shape)
    with torch.no_grad():
        sums = layer(x)
        residual = torch.randint(-9, 10, sums.shape).float()
        packed, adding = (PackedConv2d(layer.to(dtype), "relu") for _ in range(2))
        inputs = (x.to(dtype), x.to(dtype).contiguous(memory_format=torch.channels_last))
        for given in inputs:
            assert torch.equal(packed(given).float(), torch.relu(sums).to(dtype).float())
            # oneDNN, which adds to depthwise convolutions too, rounds before it adds.
            if dtype is torch.float32 or name not in ("depthwise", *BY_ONEDNN):
                found = adding(given, residual.to(dtype)).float()
                assert torch.equal(found, torch.relu(sums + residual).to(dtype).float())
    (ran,) = packed.runs_on.values()
    assert ran.startswith("fused" if name in LAYERS else "onednn")


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "depthwise"])
def test_the_reference_is_torch_s_convolution(name: str) -> None:
    (c, oc, kernel), more, shape = LAYERS[name]
    layer = nn.Conv2d(c, oc, kernel, **more)
    packed = PackedConv2d(layer)
    problems = packed.problems(torch.empty(shape))
    assert problems is not None
    (problem,) = problems
    assert problem.kind == "convolution"
    packed.weights(problem).check(problem)
    weights, x = integer_data(problem)
    assert weights.pointwise is not None
    layer.weight.data = torch.from_numpy(weights.pointwise)
    if layer.bias is not None:
        assert weights.pointwise_bias is not None
        layer.bias.data = torch.from_numpy(weights.pointwise_bias)
    with torch.no_grad():
        expected = layer(torch.from_numpy(x)).numpy()
    assert np.array_equal(naive(problem, weights, x), expected)


@pytest.mark.parametrize("backend", ["onednn", "ipex", "eager"])
def test_another_backend_means_onednn(backend: str) -> None:
    layer, pointwise, x = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 1), torch.randn(1, 3, 9, 9)
    packed = PackedConv2d(layer.eval(), backend=backend)
    gate = PackedConv2d(pointwise.eval(), "hardsigmoid", backend, pooled=True)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x))
        expected = F.hardsigmoid(pointwise(x.mean((2, 3), keepdim=True)))
        torch.testing.assert_close(gate(x), expected)
        scale = torch.rand(1, 3, 1, 1)
        torch.testing.assert_close(packed(x, None, scale), layer(x * scale))
    assert {*packed.runs_on.values(), *gate.runs_on.values()} == {"onednn"}


def test_what_onednn_gets_wrong_is_left_to_torch() -> None:
    one = nn.Conv2d(1, 2, (1, 3), stride=2).eval()
    multiplied = nn.Conv2d(2, 4, (1, 3), stride=2, groups=2).to(torch.bfloat16).eval()
    for layer in (one, multiplied):
        packed = PackedConv2d(layer, backend="onednn")
        x = torch.randn(1, layer.in_channels, 1, 3).to(layer.weight.dtype)
        with torch.no_grad():
            assert torch.equal(packed(x), layer(x))
        (ran,) = packed.runs_on.values()
        assert ran.startswith("torch: oneDNN leaves outputs unwritten")


@pytest.mark.parametrize("pooled", [False, True])
def test_linear_layers(pooled: bool) -> None:
    layer = nn.Linear(70, 33).eval()
    packed = PackedLinear(layer, "relu6", pooled)
    x = _integers(layer, (3, 70, 4, 8) if pooled else (3, 70))
    with torch.no_grad():  # 32 pixels: their mean is exact
        expected = F.relu6(layer(x.mean((2, 3)) if pooled else x))
        assert torch.equal(packed(x), expected)
        assert torch.equal(packed.plain(x, None), expected)
    assert "fused" in str(packed.runs_on)


@pytest.mark.parametrize("backend", ["auto", "onednn"])
def test_what_does_not_fit_is_as_in_torch(backend: str) -> None:
    layers: list[nn.Module] = [
        PackedConv2d(nn.Conv2d(8, 4, 3), backend=backend),
        PackedConv2d(nn.Conv2d(8, 8, 3, groups=8), backend=backend),
        PackedConv2d(nn.Conv2d(8, 4, 1), backend=backend, pooled=True),
        PackedLinear(nn.Linear(8, 4), pooled=True),
        PackedLinear(nn.Linear(8, 4)),
    ]
    with torch.no_grad():
        for layer in layers:
            for channels in (4, 9, 16):
                x = torch.randn(2, channels, 5, 5)
                with pytest.raises(RuntimeError, match=r"channels|cannot be multiplied"):
                    layer.eval()(x if layer is not layers[-1] else x[..., 0, 0])
        packed, x = layers[0], torch.randn(2, 8, 5, 5)
        for residual in (torch.randn(1, 4, 1, 1), torch.randn(2, 4, 3, 3).double()):
            expected = packed(x) + residual
            torch.testing.assert_close(packed(x, residual), expected, rtol=1e-5, atol=1e-5)


def test_a_separable_layer_names_the_channels() -> None:
    layer = SeparableConv2d(8, 4, 3).eval()
    for channels in (4, 16):
        for model in (layer, copy.deepcopy(layer).train()):
            with pytest.raises(ValueError, match=r"must be \(N, 8, H, W\)"):
                model(torch.randn(1, channels, 9, 9))


def test_weights_are_packed_once_for_all_sizes_of_the_input() -> None:
    for layer, channels in (
        (PackedConv2d(nn.Conv2d(8, 24, 3, padding=1)), 8),
        (SeparableConv2d(8, 24, 3, padding=1), 8),
        (PackedConv2d(nn.Conv2d(16, 16, 3, padding=1, groups=16)), 16),
    ):
        layer.eval()
        with torch.no_grad():
            for size in (9, 20, 33):
                x = torch.randn(size % 3 + 1, channels, size, size + 1)
                torch.testing.assert_close(layer(x), layer.plain(x, None), rtol=1e-4, atol=1e-5)
            assert len(layer.runs_on) == 3
            assert len(layer._packings.made) == 1
            next(layer.parameters()).mul_(2)
            torch.testing.assert_close(layer(x), layer.plain(x, None), rtol=1e-4, atol=1e-5)
            assert len(layer._packings.made) == 1


def test_a_pooled_depthwise_convolution_is_on_the_mean() -> None:
    x = torch.randn(2, 16, 5, 6)
    for kernel in (1, 3):
        layer = nn.Conv2d(16, 16, kernel, padding=kernel // 2, groups=16)
        packed = PackedConv2d(layer, pooled=True).eval()
        with torch.no_grad():
            expected = packed.plain(x, None)
            torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-6)
        assert "fused" in str(packed.runs_on)
