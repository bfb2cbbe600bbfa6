"""About torch's convolutions, and their way to oneDNN. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dnnsep.backends.base import Verdict
from dnnsep.backends.onednn_faults import grouped_verdict
from dnnsep.backends.tensors import TORCH_ACTIVATIONS
from dnnsep.nn.layer import DTYPES
from dnnsep.problem import Pair, Problem


def weight_and_bias(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Returns a layer's weight and bias, as they are or as they are computed (parametrized)."""
    own = layer._parameters
    weight = own.get("weight")  # a shorter way than the attributes, which every call takes
    if weight is None or "bias" not in own:  # parametrized
        return layer.weight, layer.bias
    return weight, own["bias"]


def is_depthwise(layer: nn.Module) -> bool:
    """Returns whether a convolution has a filter of its own for each of several channels."""
    return isinstance(layer, nn.Conv2d) and (
        1 < layer.groups == layer.in_channels == layer.out_channels
    )


def is_pointwise(layer: nn.Module) -> bool:
    """Returns whether a convolution has a 1x1 kernel, stride 1, no groups and no padding."""
    return (
        isinstance(layer, nn.Conv2d)
        and (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        and not any(layer._reversed_padding_repeated_twice)
    )


def padding_of(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Returns (top, bottom, left, right) of a convolution's padding, maybe "same" or "valid"."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return top, bottom, left, right


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> nn.Conv2d:
    """Returns one convolution that does what the two do in eval mode; the very same without a norm.

    Raises ValueError for a norm without running statistics.
    """
    if norm is None:
        return convolution
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm: has no running statistics, so it cannot be folded")
    one = copy.copy(convolution)
    one._parameters = dict(convolution._parameters)
    one.weight, one.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return one


def pair(values: tuple[int, ...]) -> Pair:
    """Returns the two values as a pair, for the type checker."""
    first, second = values
    return first, second


def convolution_problem(layer: nn.Conv2d, x: Tensor, activation: str) -> Problem | None:
    """Returns an ordinary or a depthwise convolution with its activation as a problem, for inputs
    like x: (N, C, H, W); None where it is none, as with other groups."""
    batch, channels, height, width = x.shape
    if layer.groups not in (1, layer.in_channels):
        return None
    try:
        return Problem(
            batch=batch,
            in_channels=channels,
            out_channels=layer.out_channels,
            height=height,
            width=width,
            kernel=pair(layer.kernel_size),
            stride=pair(layer.stride),
            padding=padding_of(layer),
            dilation=pair(layer.dilation),
            channel_multiplier=layer.out_channels // channels if layer.groups > 1 else 1,
            bias=layer.bias is not None,
            activations=(activation,),
            dtype=DTYPES[x.dtype],
            kind="convolution" if layer.groups == 1 else "depthwise",
        )
    except ValueError:  # an image smaller than the kernel: torch says so
        return None


def onednn_verdict(layer: nn.Conv2d, x: Tensor) -> Verdict:
    """Returns whether oneDNN can be asked to run a convolution on inputs like x."""
    if x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Verdict(False, "oneDNN has no bf16 on this CPU")
    problem = convolution_problem(layer, x, "none")
    if problem is None:
        return Verdict(True, "a grouped convolution")
    return grouped_verdict(problem)


def onednn_convolution(
    layer: nn.Conv2d, activation: str, shape: torch.Size
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Returns f(x, residual) for inputs of a shape, through torch's oneDNN operators.

    The activation is fused where the operator knows it; after a residual it knows only relu.
    """
    top, bottom, left, right = padding_of(layer)
    extra = () if (top, left) == (bottom, right) else (left, right, top, bottom)
    padding = (0, 0) if extra else (top, left)
    if extra:
        shape = torch.Size((*shape[:2], shape[2] + top + bottom, shape[3] + left + right))
    geometry = (padding, layer.stride, layer.dilation, layer.groups)
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the last argument
    weight = reorder(layer.weight.detach().to_mkldnn(), *geometry, shape)
    bias = None if layer.bias is None else layer.bias.detach()
    operator = torch.ops.mkldnn._convolution_pointwise
    follows, nothing = TORCH_ACTIVATIONS[activation], TORCH_ACTIVATIONS["none"]
    post_op, then = follows.post_op, nothing.function
    if post_op is None:
        post_op, then = nothing.post_op, follows.function
    assert post_op is not None
    # After an addition the operator knows no other activation.
    by_operator = activation == "relu"
    of_sums, then_of_sums = ("relu", then) if by_operator else (None, follows.function)

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        x = F.pad(x, extra) if extra else x
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is None:
            return then(operator(x, weight, bias, *geometry, *post_op))
        arguments: tuple[Any, ...] = (weight, bias, *geometry, "add", 1.0, of_sums, [], None)
        return then_of_sums(operator.binary(x, residual, *arguments))

    return run
