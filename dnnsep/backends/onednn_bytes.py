"""Quantised operations through torch's own oneDNN operators, qconv2d_pointwise and
qlinear_pointwise.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import torch

from dnnsep.backends.executor import TENSOR_DTYPES
from dnnsep.backends.operations import Bytes, Operation, Shape
from dnnsep.backends.tensors import (
    TORCH_ACTIVATIONS,
    View,
    images_view,
    keep_channels_last,
    rows_view,
)
from dnnsep.problem import Pair


def convolution(operation: Operation, padding: Pair, input_shape: Shape) -> View:
    """Returns what runs a quantised convolution on inputs of a shape."""
    told, weight, bias, scales, zeros = _parameters(operation)
    x_scale, x_zero = told.source.scale, told.source.zero_point
    strides, groups = (operation.stride, padding, operation.dilation), operation.groups
    packed = torch.ops.onednn.qconv_prepack(
        weight, scales, x_scale, x_zero, *strides, groups, input_shape
    )
    run, target = torch.ops.onednn.qconv2d_pointwise, _target(told)
    post_op = TORCH_ACTIVATIONS[operation.activation].post_op
    return keep_channels_last(
        lambda x: run(
            x, x_scale, x_zero, packed, scales, zeros, bias, *strides, groups, *target, *post_op
        ),
        input_shape,
    )


def linear(operation: Operation) -> View:
    """Returns what runs a quantised pointwise convolution or linear layer."""
    told, weight, bias, scales, zeros = _parameters(operation)
    x_scale, x_zero = told.source.scale, told.source.zero_point
    batch, channels, height, width = operation.input_shape
    rows = [batch * height * width, channels]
    packed = torch.ops.onednn.qlinear_prepack(weight.flatten(1), rows)
    run, target = torch.ops.onednn.qlinear_pointwise, _target(told)
    post_op = TORCH_ACTIVATIONS[operation.activation].post_op
    as_rows, as_images = rows_view(operation.input_shape), images_view(operation.output_shape)
    return lambda x: as_images(
        run(as_rows(x), x_scale, x_zero, packed, scales, zeros, bias, *target, *post_op)
    )


def _parameters(
    operation: Operation,
) -> tuple[Bytes, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Returns what the tensors hold, the weights, the bias, and the weights' scales and zeros."""
    told = operation.quantized
    assert told is not None
    weight = torch.from_numpy(operation.filters).to(torch.int8)
    bias = None if operation.bias is None else torch.from_numpy(operation.bias)
    scales = torch.from_numpy(told.scales)
    return told, weight, bias, scales, torch.zeros(len(scales), dtype=torch.int32)


def _target(told: Bytes) -> tuple[float, int, torch.dtype]:
    """Returns the output's scale, zero point and dtype."""
    dtype = TENSOR_DTYPES[told.target_dtype.name]
    if told.target is None:
        return 1.0, 0, dtype
    return told.target.scale, told.target.zero_point, dtype
