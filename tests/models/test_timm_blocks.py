"""The shipped blocks are those of timm's networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnnsep.block import Block
from dnnsep.models.blocks import module_of
from dnnsep.sweep.config import Overrides, load_sweep

CONFIG = Path(__file__).parents[2] / "configs" / "blocks.yaml"
_MODELS = {
    "v2": "mobilenetv2_100",
    "v3": "mobilenetv3_large_100",
    "b0": "efficientnet_b0",
    "convnext": "convnext_tiny",
}
_NAMES = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Sigmoid: "sigmoid",
    nn.Identity: "none",
}


def _name_of(activation: nn.Module) -> str:
    for kind in type(activation).__mro__:
        if kind in _NAMES:
            return _NAMES[kind]
    return {"Sigmoid": "sigmoid"}[type(activation).__name__]  # a class of timm's own


def _mbconv(layer: Any, size: tuple[int, int]) -> Block:
    """Returns the block that a module of timm's is, on images of a size."""
    expands = hasattr(layer, "conv_pw") and hasattr(layer, "conv_pwl")
    depthwise = layer.conv_dw
    last = layer.conv_pwl if expands else layer.conv_pw
    first_norm = layer.bn1
    assert depthwise.padding == tuple(k // 2 for k in depthwise.kernel_size)
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
    last_norm = layer.bn3 if expands else layer.bn2
    assert _name_of(last_norm.act) == "none"
    activation = _name_of(first_norm.act)
    if expands:
        assert layer.conv_pw.kernel_size == last.kernel_size == (1, 1)
        assert _name_of(layer.bn2.act) == activation
    squeezed: dict[str, Any] = {}
    if not isinstance(layer.se, nn.Identity):
        of_gate = (_name_of(layer.se.act1), _name_of(layer.se.gate))
        squeezed = {
            "squeezed": layer.se.conv_reduce.out_channels,
            "squeezed_activations": of_gate,
        }
    block = Block(
        "mbconv",
        1,
        layer.conv_pw.in_channels if expands else depthwise.in_channels,
        depthwise.in_channels,
        last.out_channels,
        *size,
        depthwise.kernel_size,
        depthwise.stride,
        activation,
        **squeezed,
    )
    assert block.has_expansion == expands
    assert block.has_residual == layer.has_skip
    return block


def _convnext(layer: Any, size: tuple[int, int]) -> Block:
    assert layer.conv_dw.padding == tuple(k // 2 for k in layer.conv_dw.kernel_size)
    assert layer.norm.eps == 1e-6
    assert type(layer.mlp.act).__name__ == "GELU"
    channels, expanded = layer.mlp.fc1.in_features, layer.mlp.fc1.out_features
    return Block(
        "convnext", 1, channels, expanded, channels, *size, layer.conv_dw.kernel_size,
        activation="gelu",
    )  # fmt: skip


def blocks_of(name: str) -> Iterator[tuple[Block, nn.Module]]:
    """Yields the blocks of a model of timm's and the modules that they are, in order."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(name).eval()
    sizes: dict[nn.Module, tuple[int, int]] = {}
    kinds = ("InvertedResidual", "DepthwiseSeparableConv", "ConvNeXtBlock")
    layers = [layer for layer in model.modules() if type(layer).__name__ in kinds]

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        height, width = arguments[0].shape[-2:]
        sizes[layer] = (height, width)

    for layer in layers:
        layer.register_forward_pre_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    for layer in layers:
        made = _convnext if type(layer).__name__ == "ConvNeXtBlock" else _mbconv
        yield made(layer, sizes[layer]), layer


@pytest.mark.parametrize("prefix", _MODELS)
def test_the_shipped_blocks_are_timms(prefix: str) -> None:
    found = list(dict.fromkeys(block for block, _ in blocks_of(_MODELS[prefix])))
    cases = load_sweep([str(CONFIG)], Overrides(dtypes=["f32"]), 2).blocks
    shipped = {case.name: case.block for case in cases if str(case.name).startswith(f"{prefix}.")}
    assert list(shipped.values()) == found
    assert list(shipped) == [f"{prefix}.{number}" for number in range(1, len(found) + 1)]


@pytest.mark.parametrize("prefix", _MODELS)
def test_our_modules_compute_what_timms_do(prefix: str) -> None:
    """With timm's parameters and statistics in their order, for the first block of each kind."""
    seen: set[tuple[bool, bool, bool]] = set()
    for block, theirs in blocks_of(_MODELS[prefix]):
        kind = (block.has_expansion, block.has_residual, bool(block.squeezed))
        if kind in seen:
            continue
        seen.add(kind)
        ours = module_of(block).eval()
        values = {name: v for name, v in theirs.state_dict().items() if name != "gamma"}
        gamma = theirs.state_dict().get("gamma")
        with torch.no_grad():
            for (name, mine), value in zip(
                ((n, v) for n, v in ours.state_dict().items() if n != "scale"),
                values.values(),
                strict=True,
            ):
                assert mine.shape == value.shape, name
                mine.copy_(value)
            if gamma is not None:
                ours.get_parameter("scale").copy_(gamma)
            x = torch.randn(2, *block.input_shape[1:])
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert seen
