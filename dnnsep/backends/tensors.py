"""Torch tensors from NumPy arrays, and the steps every torch backend shares.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnsep.backends.executor import INPUT_DTYPES, Stage
from dnnsep.backends.onednn_faults import padding_verdict
from dnnsep.backends.operations import Operation, Shape
from dnnsep.dtypes import Array
from dnnsep.problem import Pair, Problem

# A view of a tensor, its shape and strides worked out beforehand.
View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TorchActivation:
    """What torch has for an activation.

    ``function`` gives a new tensor, ``in_place`` writes into the one it takes, ``module`` makes
    the layer. ``post_op`` is how torch's fused oneDNN operators are told: attribute, scalars and
    algorithm; they have every one.
    """

    function: View
    in_place: View
    module: Callable[[], nn.Module]
    post_op: tuple[str, list[Any], str]


# By the names of dnnsep.activations.ACTIVATIONS.
TORCH_ACTIVATIONS: dict[str, TorchActivation] = {
    "none": TorchActivation(lambda y: y, lambda y: y, nn.Identity, ("none", [], "")),
    "relu": TorchActivation(F.relu, torch.relu_, nn.ReLU, ("relu", [], "")),
    "relu6": TorchActivation(
        F.relu6, partial(F.relu6, inplace=True), nn.ReLU6, ("hardtanh", [0.0, 6.0], "")
    ),
    "silu": TorchActivation(F.silu, partial(F.silu, inplace=True), nn.SiLU, ("swish", [], "")),
    "hardswish": TorchActivation(
        F.hardswish, partial(F.hardswish, inplace=True), nn.Hardswish, ("hardswish", [], "")
    ),
    "gelu": TorchActivation(F.gelu, torch.ops.aten.gelu_, nn.GELU, ("gelu", [], "none")),
    "sigmoid": TorchActivation(torch.sigmoid, torch.sigmoid_, nn.Sigmoid, ("sigmoid", [], "")),
    "hardsigmoid": TorchActivation(
        F.hardsigmoid, partial(F.hardsigmoid, inplace=True), nn.Hardsigmoid, ("hardsigmoid", [], "")
    ),
}


def to_tensor(array: Array, dtype: str) -> Tensor:
    """A contiguous tensor of what a problem of a dtype has as its input."""
    return torch.from_numpy(array).to(INPUT_DTYPES[dtype])


def to_channels_last(array: Array, dtype: str) -> Tensor:
    """An (N, C, H, W) array as the input of a problem of a dtype, channels-last in memory."""
    return channels_last(to_tensor(array, dtype))


def weight_tensors(operation: Operation, dtype: str) -> tuple[Tensor, Tensor | None]:
    """Returns an operation's weight (OC, C / groups, kh, kw) and its bias (OC,), contiguous."""
    bias = None if operation.bias is None else to_tensor(operation.bias, dtype)
    return to_tensor(operation.filters, dtype), bias


def pad_if_needed(problem: Problem) -> tuple[list[Stage], Pair]:
    """Returns the stages to run before a problem's convolution and the (h, w) padding left to it.

    What oneDNN or torch cannot pad is padded, or cropped, by a stage of its own.
    """
    if problem.symmetric_padding is not None and padding_verdict(problem):
        return [], problem.symmetric_padding
    top, bottom, left, right = problem.padding
    rows, columns = problem.height + top + bottom, problem.width + left + right
    sides = (left, max(right, 0), top, max(bottom, 0))

    def pad(x: Tensor) -> Tensor:
        # Cropped afterwards: F.pad cannot crop more than the image, which leaves only padding.
        return channels_last(F.pad(x, sides)[:, :, :rows, :columns])

    return [Stage("pad", pad)], (0, 0)


def repeat_if_multiplied(problem: Problem) -> list[Stage]:
    """With a channel multiplier m, the stage that writes every input channel m times.

    The convolution after it is a true depthwise one over C·m channels. oneDNN's kernels for m
    outputs a group are slower than the copy and this together, and one of them is wrong (see
    onednn_faults).
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


def convolution_input(problem: Problem) -> tuple[list[Stage], Pair, Shape]:
    """Returns what a problem's convolution reads where a depthwise one is over C·m channels, each
    a group of its own: the stages to run before it, the (h, w) padding left to it and its input's
    shape."""
    stages, padding = pad_if_needed(problem)
    height, width = problem.height, problem.width
    if stages:
        top, bottom, left, right = problem.padding
        height, width = height + top + bottom, width + left + right
    shape = (problem.batch, problem.mid_channels, height, width)
    return stages + repeat_if_multiplied(problem), padding, shape


def rows_view(shape: Shape) -> View:
    """Returns a function that sees a channels-last (N, C, H, W) of a shape as the matrix
    (N·H·W, C) that it is in memory."""
    batch, channels, height, width = shape
    size, stride = (batch * height * width, channels), (channels, 1)
    return lambda x: x.as_strided(size, stride)


def images_view(shape: Shape) -> View:
    """Returns a function that sees a matrix (N·H·W, C) as the channels-last (N, C, H, W) of a
    shape that it is in memory."""
    _, channels, height, width = shape
    stride = (height * width * channels, 1, width * channels, channels)
    return lambda rows: rows.as_strided(shape, stride)


def mean(x: Tensor) -> Tensor:
    """Returns the mean of each channel over all pixels of a channels-last (N, C, H, W), summed in
    f32, as (N, C, 1, 1). Tensor.mean would round a bf16 sum before it divides."""
    return channels_last(F.avg_pool2d(x, x.shape[2:]))


def channels_last(x: Tensor) -> Tensor:
    """The same values, channels-last in memory; no copy where they are so already."""
    return x.contiguous(memory_format=torch.channels_last)


def keep_channels_last(convolution: View, input_shape: Shape) -> View:
    """The convolution, with a channels-last result for every input.

    An input of one channel or one pixel is the same in memory in both layouts, and the frameworks
    may then answer in the other one.
    """
    _, channels, height, width = input_shape
    if channels > 1 and (height, width) != (1, 1):
        return convolution
    return lambda x: channels_last(convolution(x))
