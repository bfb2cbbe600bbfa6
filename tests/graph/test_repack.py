"""Weights that change in ways that torch does not count, in layers and in networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dnnsep
from dnnsep import SeparableConv2d

X = torch.randn(1, 16, 12, 12, generator=torch.Generator().manual_seed(1))


def _layer() -> nn.Module:
    return SeparableConv2d(16, 32, 3, padding=1, backend="fused").eval()


def _network() -> nn.Module:
    parts = nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    return dnnsep.optimize(parts, X, tune=False)


@pytest.fixture(params=[_layer, _network])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = request.param()
    return made


def agrees(model: nn.Module) -> bool:
    """Returns whether a model answers with its weights as they are now."""
    expected = model(X).detach()  # with gradients, so by torch's operators
    with torch.inference_mode():
        found = model(X)
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def _through_data(weight: Tensor) -> None:
    weight.data.mul_(-3)


def _through_numpy(weight: Tensor) -> None:
    weight.detach().numpy()[:] += 1


@pytest.mark.parametrize("change", [_through_data, _through_numpy])
def test_writes_that_torch_does_not_count(
    model: nn.Module, change: Callable[[Tensor], None]
) -> None:
    assert agrees(model)
    for parameter in model.parameters():
        change(parameter)
        assert agrees(model)


def test_a_layer_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = _layer()
        before = layer(X)
        layer.pointwise.weight.mul_(-3)  # type: ignore[union-attr,operator]
        layer.pointwise.bias.mul_(-3)  # type: ignore[union-attr,operator]
        assert torch.allclose(layer(X), -3 * before, rtol=1e-4, atol=1e-4)


def test_the_operator_notices_them_too() -> None:
    filters = torch.randn(3, 3, 16, 1), torch.randn(1, 1, 16, 8)

    def result() -> Any:
        return dnnsep.separable_conv2d(
            X, *filters, strides=[1, 1, 1, 1], padding="SAME", data_format="NCHW"
        )

    before = result()
    filters[1].numpy()[:] *= 2
    assert torch.allclose(result(), 2 * before, rtol=1e-4, atol=1e-4)


def test_repack_makes_what_was_not_noticed_anew(model: nn.Module) -> None:
    assert agrees(model)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            small = parameter.abs() < 0.9 * parameter.abs().max()
            parameter.data[small] *= -0.5
    assert not agrees(model)  # each tensor's largest element is what it was
    dnnsep.repack(model)
    assert agrees(model)
