"""Blocks as modules: what they compute, and that they are those of timm's networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnsep.block import Block
from dnnsep.models.blocks import MBConv
from dnnsep.models.layers import layers
from dnnsep.models.zoo import load


def _normed(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    each = (1, -1, 1, 1)
    scaled = (x - mean.reshape(each)) / (variance.reshape(each) + norm.eps).sqrt()
    return scaled * norm.weight.reshape(each) + norm.bias.reshape(each)


@torch.no_grad()
def test_an_inverted_residual_written_out() -> None:
    model, x = load("mbconv_mb2ic8ex24oc8ih9iw11kh5kw3sh1se6_act:hardswish_se:relu,hardsigmoid")
    weights = {name: value for name, value in model.named_parameters() if value.dim() == 4}
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert list(weights) == [
        "expansion.0.weight",
        "depthwise.0.weight",
        "excitation.reduce.weight",
        "excitation.expand.weight",
        "projection.0.weight",
    ]
    expand, depthwise, reduce, back, project = weights.values()
    y = F.hardswish(_normed(F.conv2d(x, expand), norms[0]))
    y = F.conv2d(y, depthwise, padding=(2, 1), groups=24)
    y = F.hardswish(_normed(y, norms[1]))
    means = y.mean((2, 3))
    of = dict(model.named_parameters())
    hidden = F.relu(means @ reduce[:, :, 0, 0].T + of["excitation.reduce.bias"])
    scales = F.hardsigmoid(hidden @ back[:, :, 0, 0].T + of["excitation.expand.bias"])
    y = _normed(F.conv2d(y * scales[:, :, None, None], project), norms[2]) + x
    assert y.shape == (2, 8, 9, 11)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_strided_block_without_expansion_or_residual() -> None:
    model, x = load("mbconv_mb1ic8ex8oc12ih9kh3sh2_act:relu6")
    assert isinstance(model, MBConv)
    first, second = (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    depthwise, project = (value for value in model.parameters() if value.dim() == 4)
    y = F.relu6(_normed(F.conv2d(x, depthwise, stride=2, padding=1, groups=8), first))
    y = _normed(F.conv2d(y, project), second)
    assert y.shape == (1, 12, 5, 5)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_convnext_block_written_out() -> None:
    model, x = load("convnext_mb2ic8ex32ih9kh7")
    of = dict(model.named_parameters())
    y = F.conv2d(x, of["depthwise.weight"], of["depthwise.bias"], padding=3, groups=8)
    y = y.permute(0, 2, 3, 1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    y = y * of["norm.weight"] + of["norm.bias"]
    y = F.gelu(y @ of["expansion.weight"].T + of["expansion.bias"])
    y = (y @ of["projection.weight"].T + of["projection.bias"]) * of["scale"]
    torch.testing.assert_close(model(x), y.permute(0, 3, 1, 2) + x, rtol=1e-4, atol=1e-4)
    assert float(of["scale"].min()) > 0.4  # the branch is seen in the output


@pytest.mark.parametrize(
    "text",
    [
        "mbconv_mb2ic16ex96oc24ih15kh3sh2_act:relu6",
        "mbconv_mb1ic16ex48oc16ih9kh5sh1se8_act:silu",
        "convnext_mb2ic8ex32ih9kh7",
    ],
)
def test_operations_are_those_of_the_modules_layers(text: str) -> None:
    model, x = load(text)
    assert sum(layer.flops for layer in layers(model, x)) == Block.parse(text).flops


def test_the_same_values_each_time() -> None:
    (first, x), (second, again) = (load("mbconv_mb1ic8ex24oc8ih9kh3sh1_act:relu6") for _ in "12")
    assert torch.equal(x, again)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
    assert not first.training


def test_more_images_than_the_descriptor_says() -> None:
    _, x = load("mbconv_mb1ic8ex24oc8ih9kh3sh1_act:relu6", (3, 8, 9, 9))
    assert x.shape == (3, 8, 9, 9)


@pytest.mark.parametrize(
    ("name", "shape", "rule"),
    [
        ("mbconv_mb1ic8oc8ih9kh3", None, "descriptor 'mbconv_mb1ic8oc8ih9kh3': ex: missing"),
        ("convnext_mb1ic8ex9ih9kh7_bf16", None, "_bf16: the dtype of a model is given apart"),
        (
            "convnext_mb1ic8ex9ih9kh7",
            (1, 8, 9, 8),
            r"is \[1, 8, 9, 9\], not \[1, 8, 9, 8",
        ),
    ],
)
def test_bad_blocks(name: str, shape: tuple[int, ...] | None, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        load(name, shape)
