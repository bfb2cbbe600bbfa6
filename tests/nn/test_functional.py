"""TensorFlow's function: its own results, its arguments, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dnnsep

_GOLDEN = Path(__file__).parents[1] / "data" / "tf_separable_conv2d.npz"


def _ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_agrees_with_tensorflow(data_format: str) -> None:
    with np.load(_GOLDEN) as golden:
        assert golden["count"] == 40
        for i in range(40):
            x, depthwise, pointwise, y = (
                torch.from_numpy(golden[f"{name}_{i}"])
                for name in ("x", "depthwise", "pointwise", "y")
            )
            stride, dilation, same = (int(v) for v in golden[f"meta_{i}"])
            first = data_format == "NCHW"
            found = dnnsep.separable_conv2d(
                x.permute(0, 3, 1, 2) if first else x,
                depthwise,
                pointwise,
                strides=[1, 1, stride, stride] if first else [1, stride, stride, 1],
                padding="SAME" if same else "VALID",
                data_format=data_format,
                dilations=[dilation, dilation],
                name="layer",
            )
            found = found.permute(0, 2, 3, 1) if first else found
            assert found.shape == y.shape
            # Sums of up to some hundred products of numbers around 1, in another order.
            torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-4)


def test_explicit_padding() -> None:
    x, depthwise, pointwise = (
        torch.randn(1, 7, 8, 3),
        torch.randn(3, 3, 3, 2),
        torch.randn(1, 1, 6, 4),
    )
    pads = [[0, 0], [1, 1], [1, 1], [0, 0]]
    explicit = dnnsep.separable_conv2d(x, depthwise, pointwise, [1, 1, 1, 1], pads)
    same = dnnsep.separable_conv2d(x, depthwise, pointwise, [1, 1, 1, 1], "SAME")
    assert torch.equal(explicit, same)
    pads = [[0, 0], [5, 0], [0, 4], [0, 0]]  # beyond the kernel's reach
    wide = dnnsep.separable_conv2d(x, depthwise, pointwise, [1, 1, 1, 1], pads)
    assert wide.shape == (1, 10, 10, 4)
    assert torch.equal(wide[:, 0], torch.zeros(1, 10, 4))


def test_gradients_and_other_dtypes() -> None:
    x = torch.randn(1, 5, 5, 2, dtype=torch.float64, requires_grad=True)
    depthwise = torch.randn(3, 3, 2, 1, dtype=torch.float64, requires_grad=True)
    pointwise = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, dw: torch.Tensor, pw: torch.Tensor) -> torch.Tensor:
        return dnnsep.separable_conv2d(x, dw, pw, [1, 1, 1, 1], "SAME")

    assert torch.autograd.gradcheck(run, (x, depthwise, pointwise))
    single = [t.detach().float().requires_grad_() for t in (x, depthwise, pointwise)]
    first, second, third = single
    found = torch.autograd.grad(run(first, second, third).sum(), single)
    expected = torch.autograd.grad(run(x, depthwise, pointwise).sum(), (x, depthwise, pointwise))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [1, 2, 1, 1]}, "strides=.*the same along height and width"),
        ({"strides": [2, 1, 1, 1]}, "strides=.*must be 1 along the batch and the channels"),
        ({"strides": [1, 1]}, "strides=.*must be four numbers"),
        ({"strides": [1, 2, 2, 1], "dilations": [2, 2]}, "strides=.*must all be 1 where dilations"),
        ({"dilations": [2]}, "dilations=.*must be two numbers"),
        ({"padding": "same"}, "padding='same': must be SAME, VALID or four"),
        (
            {"padding": [[0, 0], [1, 1], [1, 1], [1, 0]]},
            "padding=.*along the batch and the channels",
        ),
        ({"padding": [[0, 0], [-1, 1], [1, 1], [0, 0]]}, "padding=.*must not be negative"),
        ({"data_format": "CHWN"}, "data_format='CHWN': must be NHWC or NCHW"),
        (
            {"depthwise_filter": _ones(3, 3, 4, 2)},
            "depthwise_filter: for 4 channels, the input has 3",
        ),
        ({"pointwise_filter": _ones(1, 1, 5, 4)}, "pointwise_filter: for 5 .*stage gives 6"),
        ({"pointwise_filter": _ones(2, 1, 6, 4)}, r"pointwise_filter: shape .*must be \(1, 1"),
        ({"input": _ones(7, 8, 3)}, "input: must have 4 dimensions, it has 3"),
        ({"pointwise_filter": _ones(1, 1, 6, 4).double()}, "pointwise_filter: dtype torch.float64"),
        ({"input": _ones(1, 2, 2, 3), "padding": "VALID"}, "height=2: .*at least the"),
        ({"backend": "magic"}, "backend 'magic': must be one of"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "input": _ones(1, 7, 8, 3),
        "depthwise_filter": _ones(3, 3, 3, 2),
        "pointwise_filter": _ones(1, 1, 6, 4),
        "strides": [1, 1, 1, 1],
        "padding": "SAME",
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        dnnsep.separable_conv2d(**arguments)
