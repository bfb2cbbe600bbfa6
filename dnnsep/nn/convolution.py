"""About torch's convolutions, and their way to oneDNN. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dnnsep.backends.base import Verdict
from dnnsep.backends.onednn_faults import grouped_verdict
from dnnsep.backends.tensors import TORCH_ACTIVATIONS, pad_if_needed
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
    if layer.groups not in (1, layer.in_channels):
        return None
    try:
        return _problem(layer, x, activation, "convolution" if layer.groups == 1 else "depthwise")
    except ValueError:  # an image smaller than the kernel: torch says so
        return None


def _problem(layer: nn.Conv2d, x: Tensor, activation: str, kind: str) -> Problem:
    batch, channels, height, width = x.shape
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
        channel_multiplier=layer.out_channels // channels if kind == "depthwise" else 1,
        bias=layer.bias is not None,
        activations=(activation,),
        dtype=DTYPES[x.dtype],
        kind=kind,
    )


def _as_onednn_sees_it(layer: nn.Conv2d, x: Tensor) -> Problem:
    """Returns a convolution on inputs like x as its faults are asked for: one with other groups
    is at fault where an ordinary one is. Raises ValueError for an image smaller than the kernel."""
    depthwise = 1 < layer.groups == layer.in_channels
    return _problem(layer, x, "none", "depthwise" if depthwise else "convolution")


def onednn_verdict(layer: nn.Conv2d, x: Tensor) -> Verdict:
    """Returns whether oneDNN can be asked to run a convolution on inputs like x."""
    if x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Verdict(False, "oneDNN has no bf16 on this CPU")
    try:
        return grouped_verdict(_as_onednn_sees_it(layer, x))
    except ValueError as error:
        return Verdict(False, str(error))


def onednn_convolution(
    layer: nn.Conv2d, activation: str, x: Tensor
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Returns f(x, residual) for inputs like x, through torch's oneDNN operators.

    The activation is fused, after a residual only relu, which is all that the operator knows then.
    """
    pads, padding = pad_if_needed(_as_onednn_sees_it(layer, x))
    shape = x.shape
    for stage in pads:
        shape = stage.run(torch.empty(shape, device="meta", dtype=x.dtype)).shape
    geometry = (padding, layer.stride, layer.dilation, layer.groups)
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the last argument
    weight = reorder(layer.weight.detach().to_mkldnn(), *geometry, shape)
    bias = None if layer.bias is None else layer.bias.detach()
    operator = torch.ops.mkldnn._convolution_pointwise
    follows = TORCH_ACTIVATIONS[activation]
    fused, apart = ("relu", None) if activation == "relu" else (None, follows.function)

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for stage in pads:
            x = stage.run(x)
        if residual is None:
            y: Tensor = operator(x, weight, bias, *geometry, *follows.post_op)
            return y
        arguments: tuple[Any, ...] = (weight, bias, *geometry, "add", 1.0, fused, [], None)
        y = operator.binary(x, residual, *arguments)
        return apart(y) if apart else y

    return run
