"""What of torch layers and optimized models go through, and how they say what they do not."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import dnnsep
from dnnsep import SeparableConv2d

X = torch.randn(2, 8, 10, 10, generator=torch.Generator().manual_seed(0))


def _layer() -> nn.Module:
    return SeparableConv2d(8, 16, 3, padding=1, activations=("relu6", "gelu")).eval()


def _network() -> nn.Module:
    parts = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.GELU()).eval()
    return dnnsep.optimize(parts, X, tune=False)


def _part_by_part() -> nn.Module:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            return y if float(y.sum()) > 0 else -y

    return dnnsep.optimize(Choosing().eval(), X, tune=False)


@pytest.fixture(params=[_layer, _network])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = request.param()
    return made


def close(found: Any, right: Any) -> bool:
    return torch.allclose(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
def test_vmap(model: nn.Module, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        assert close(torch.vmap(model)(X[:, None])[:, 0], model(X))


def test_jacobian(model: nn.Module) -> None:
    jacobian = torch.func.jacrev(lambda x: model(x).sum())(X)
    assert jacobian.shape == X.shape
    assert jacobian.abs().sum() > 0


@pytest.mark.parametrize("grad", [True, False])
def test_symbolic_trace(model: nn.Module, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        assert close(fx.symbolic_trace(model)(X), model(X))


def test_jit_trace(model: nn.Module) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(model, X)  # type: ignore[no-untyped-call]
        assert close(traced(X), model(X))


@pytest.mark.parametrize("make", [_layer, _network, _part_by_part])
def test_jit_script_is_refused_in_one_line(make: Callable[[], nn.Module]) -> None:
    made = make()
    with pytest.raises(
        (RuntimeError, AttributeError), match=r"torch\.jit\.script cannot"
    ) as raised:
        torch.jit.script(made)
    assert "\n" not in str(raised.value)
    with torch.no_grad():
        made(X)


def test_a_state_is_loaded_with_weights_only(model: nn.Module) -> None:
    with torch.no_grad():
        before = model(X)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        for parameter in model.parameters():
            parameter.zero_()
        model.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(model(X), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16, torch.int32])
def test_an_input_of_another_dtype_is_refused_as_torch_does(
    model: nn.Module, dtype: torch.dtype
) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="should be the same"):
        model(X.to(dtype))


def test_a_layer_in_bf16_refuses_f32() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="should be the same"):
        _layer().bfloat16()(X)


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    *(F.relu, F.relu6, F.silu, F.hardswish, F.gelu, F.sigmoid, F.hardsigmoid),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("groups", [1, 8])
def test_infinities(activation: Callable[[Tensor], Tensor], groups: int) -> None:
    """After a convolution, and alone in a network: as torch has them."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(8, 8, 1, groups=groups)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return activation(self.layer(x)), activation(x)

    model = Model().eval()
    optimized = dnnsep.optimize(model, X, tune=False)
    with torch.no_grad():
        for value in (torch.inf, -torch.inf, torch.nan):
            x = X.clone()
            x[0, :, 2, 3] = value
            for found, right in zip(optimized(x), model(x), strict=True):
                assert torch.allclose(found, right, rtol=1e-4, atol=1e-5, equal_nan=True)
