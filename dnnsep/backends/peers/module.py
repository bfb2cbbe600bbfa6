"""A problem as the torch module that a model has. Imports torch: import it from functions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dnnsep.backends.operations import Operation, operations
from dnnsep.backends.tensors import (
    TORCH_ACTIVATIONS,
    channels_last,
    pad_if_needed,
    weight_tensors,
)
from dnnsep.problem import Pair, Problem
from dnnsep.weights import Weights


class _Pad(nn.Module):
    """Pads and crops as a problem says."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        top, bottom, left, right = problem.padding
        self._sides = (left, max(right, 0), top, max(bottom, 0))
        self._rows = problem.height + top + bottom
        self._columns = problem.width + left + right

    def forward(self, x: Tensor) -> Tensor:
        # Cropped afterwards: F.pad cannot crop more than the image, which leaves only padding.
        return F.pad(x, self._sides)[:, :, : self._rows, : self._columns]


def module_of(problem: Problem, weights: Weights) -> nn.Sequential:
    """Returns the layer as a model has it, for inference: (N, C, H, W) to (N, OC, OH, OW),
    channels-last.

    Raises ValueError if the weights are not the problem's.
    """
    stages, padding = pad_if_needed(problem)
    layers: list[nn.Module] = [_Pad(problem)] if stages else []
    for operation in operations(problem, weights):
        layers += _layers(operation, padding, problem.dtype)
        layers.append(TORCH_ACTIVATIONS[operation.activation].module())
        padding = (0, 0)
    return nn.Sequential(*layers).eval()


def _layers(operation: Operation, padding: Pair, dtype: str) -> list[nn.Module]:
    """Returns an operation's layers without its activation, given what is left to pad."""
    if operation.name == "mean":
        return [nn.AvgPool2d(operation.kernel)]
    weight, bias = weight_tensors(operation, dtype)
    out_channels, in_channels = weight.shape[:2]
    layer: nn.Linear | nn.Conv2d
    # On "meta" there is no memory for weights that are replaced.
    if operation.name == "linear":
        layer = nn.Linear(in_channels, out_channels, bias is not None, device="meta")
        weight = weight.flatten(1)
    else:
        layer = nn.Conv2d(
            in_channels * operation.groups,
            out_channels,
            operation.kernel,
            operation.stride,
            padding,
            operation.dilation,
            operation.groups,
            bias is not None,
            device="meta",
        )
        weight = channels_last(weight)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    if operation.name == "linear":
        return [nn.Flatten(), layer, nn.Unflatten(1, (out_channels, 1, 1))]
    return [layer]
