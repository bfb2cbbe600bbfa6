"""Torch tensors from NumPy arrays, and the steps every torch backend shares.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnsep.backends.executor import TORCH_DTYPES, Stage
from dnnsep.problem import Problem
from dnnsep.weights import Array, Weights

# A view of a tensor, its shape and strides worked out beforehand.
View = Callable[[Tensor], Tensor]

# An activation as torch's oneDNN operators name it: attribute, scalars, algorithm.
PostOp = tuple[str, list[Any], str]


@dataclass(frozen=True)
class TorchActivation:
    """What torch calls an activation.

    ``function`` returns a new tensor, ``in_place`` writes into its argument, ``module`` makes a
    module. ``post_op`` is oneDNN's, None where torch's fused operators have none.
    """

    function: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    module: Callable[[], nn.Module]
    post_op: PostOp | None


# An entry for each of dnnsep.activations.ACTIVATIONS.
TORCH_ACTIVATIONS: dict[str, TorchActivation] = {
    "none": TorchActivation(lambda y: y, lambda y: y, nn.Identity, ("none", [], "")),
    "relu": TorchActivation(F.relu, torch.relu_, nn.ReLU, ("relu", [], "")),
    "relu6": TorchActivation(
        F.relu6,
        lambda y: F.hardtanh(y, 0.0, 6.0, inplace=True),
        nn.ReLU6,
        ("hardtanh", [0.0, 6.0], ""),
    ),
    "silu": TorchActivation(F.silu, lambda y: F.silu(y, inplace=True), nn.SiLU, ("swish", [], "")),
    "hardswish": TorchActivation(
        F.hardswish, lambda y: F.hardswish(y, inplace=True), nn.Hardswish, ("hardswish", [], "")
    ),
    "gelu": TorchActivation(F.gelu, torch.ops.aten.gelu_, nn.GELU, ("gelu", [], "none")),
    "sigmoid": TorchActivation(torch.sigmoid, torch.sigmoid_, nn.Sigmoid, ("sigmoid", [], "")),
    "hardsigmoid": TorchActivation(
        F.hardsigmoid, lambda y: F.hardsigmoid(y, inplace=True), nn.Hardsigmoid, None
    ),
}

ACTIVATE_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu_,
    "relu6": lambda y: F.hardtanh(y, 0.0, 6.0, inplace=True),
    "silu": lambda y: F.silu(y, inplace=True),
    "hardswish": lambda y: F.hardswish(y, inplace=True),
    "gelu": torch.ops.aten.gelu_,
}


def to_tensor(array: Array, dtype: str) -> Tensor:
    """A contiguous tensor of a problem's dtype."""
    return torch.from_numpy(array).to(TORCH_DTYPES[dtype])


def to_channels_last(array: Array, dtype: str) -> Tensor:
    """An (N, C, H, W) array as a tensor of a problem's dtype, channels-last in memory."""
    return channels_last(to_tensor(array, dtype))


def weight_tensors(
    problem: Problem, weights: Weights
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Depthwise (C·m, 1, kh, kw), its bias, pointwise (OC, C·m, 1, 1), its bias.

    Raises ValueError if the weights are not the problem's.
    """
    weights.check(problem)

    def convert(array: Array | None) -> Tensor | None:
        return None if array is None else to_tensor(array, problem.dtype)

    return (
        to_tensor(weights.depthwise, problem.dtype),
        convert(weights.depthwise_bias),
        to_tensor(weights.pointwise, problem.dtype),
        convert(weights.pointwise_bias),
    )


def pad_if_asymmetric(problem: Problem) -> tuple[list[Stage], tuple[int, int]]:
    """Torch's convolutions pad both sides of an axis alike; anything else is a stage of its own.

    Returns the stages to run before the convolution and the (h, w) padding left to it.
    """
    if problem.symmetric_padding is not None:
        return [], problem.symmetric_padding
    top, bottom, left, right = problem.padding
    return [Stage("pad", lambda x: F.pad(x, (left, right, top, bottom)))], (0, 0)


def repeat_if_multiplied(problem: Problem) -> list[Stage]:
    """With a channel multiplier m, the stage that writes every input channel m times.

    The convolution after it is a true depthwise one over C·m channels. oneDNN's kernels for m
    outputs a group are slower than the copy and this together, and one of them is wrong (see
    EagerBackend.supports).
    """
    m = problem.channel_multiplier
    if m == 1:
        return []

    def repeat(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        copies = x.permute(0, 2, 3, 1).unsqueeze(-1).expand(batch, height, width, channels, m)
        # Not reshape: of a single channel it would make a view with stride 0.
        copies = copies.contiguous().view(batch, height, width, channels * m)
        return copies.permute(0, 3, 1, 2)

    return [Stage("repeat", repeat)]


def depthwise_input(
    problem: Problem,
) -> tuple[list[Stage], tuple[int, int], tuple[int, int, int, int]]:
    """What a true depthwise convolution over C·m channels reads.

    Returns the stages to run before it, the (h, w) padding left to it and its input's shape.
    """
    stages, padding = pad_if_asymmetric(problem)
    height, width = problem.height, problem.width
    if stages:
        top, bottom, left, right = problem.padding
        height, width = height + top + bottom, width + left + right
    shape = (problem.batch, problem.mid_channels, height, width)
    return stages + repeat_if_multiplied(problem), padding, shape


def rows_view(problem: Problem) -> View:
    """Sees channels-last (N, C·m, OH, OW) as the matrix (N·OH·OW, C·m) that it is in memory."""
    size, stride = (problem.out_pixels, problem.mid_channels), (problem.mid_channels, 1)
    return lambda x: x.as_strided(size, stride)


def images_view(problem: Problem) -> View:
    """Sees a matrix (N·OH·OW, OC) as the channels-last (N, OC, OH, OW) that it is in memory."""
    size = problem.output_shape
    _, channels, height, width = size
    stride = (height * width * channels, 1, width * channels, channels)
    return lambda rows: rows.as_strided(size, stride)


def channels_last(x: Tensor) -> Tensor:
    """The same values, channels-last in memory; no copy where they are so already."""
    return x.contiguous(memory_format=torch.channels_last)


def keep_channels_last(convolution: View, input_shape: tuple[int, int, int, int]) -> View:
    """The convolution, with a channels-last result for every input.

    An input of one channel or one pixel is the same in memory in both layouts, and the frameworks
    may then answer in the other one.
    """
    _, channels, height, width = input_shape
    if channels > 1 and (height, width) != (1, 1):
        return convolution
    return lambda x: channels_last(convolution(x))
