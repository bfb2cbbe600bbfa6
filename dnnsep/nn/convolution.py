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
from dnnsep.backends.onednn import POST_OPS
from dnnsep.backends.onednn_faults import grouped_verdict
from dnnsep.nn.layer import ACTIVATE, Geometry, Parameters, problem_of
from dnnsep.problem import Pair


def weight_and_bias(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
    own = layer._parameters
    weight = own.get("weight")  # a shorter way than the attributes, which every call takes
    if weight is None or "bias" not in own:  # parametrized
        return layer.weight, layer.bias
    return weight, own["bias"]


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution has a filter of its own for each of several channels."""
    return isinstance(layer, nn.Conv2d) and (
        1 < layer.groups == layer.in_channels == layer.out_channels
    )


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a convolution has a 1x1 kernel, stride 1, no groups and no padding."""
    return (
        isinstance(layer, nn.Conv2d)
        and (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        and not any(layer._reversed_padding_repeated_twice)
    )


def padding_of(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a convolution's padding, which may be "same" or "valid"."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return top, bottom, left, right


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> nn.Conv2d:
    """One convolution that does what the two do in eval mode; the very same without a norm."""
    if norm is None:
        return convolution
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm: has no running statistics, so it cannot be folded")
    found = copy.copy(convolution)
    found._parameters = dict(convolution._parameters)
    found.weight, found.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return found


def pair(values: tuple[int, ...]) -> Pair:
    first, second = values
    return first, second


def onednn_verdict(layer: nn.Conv2d, x: Tensor) -> Verdict:
    """Whether oneDNN can be asked to run a convolution on inputs like x."""
    if x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Verdict(False, "oneDNN has no bf16 on this CPU")
    if layer.groups != layer.in_channels:
        return Verdict(True, "an ordinary or a grouped convolution")
    mid = layer.out_channels
    parameters = Parameters(layer.weight, None, torch.empty(1, mid, 1, 1), None)
    padding, dilation = padding_of(layer), pair(layer.dilation)
    try:
        problem = problem_of(
            x, parameters, Geometry(pair(layer.stride), padding, dilation, ("none", "none"))
        )
    except ValueError as error:
        return Verdict(False, str(error))
    return grouped_verdict(problem)


def onednn_convolution(
    layer: nn.Conv2d, activation: str, shape: torch.Size
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """f(x, residual) for inputs of a shape, through torch's oneDNN operators."""
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
    post, finish = POST_OPS["none"], ACTIVATE[activation]
    if activation in POST_OPS:
        post, finish = POST_OPS[activation], ACTIVATE["none"]
    unary = (None, [], None) if post == POST_OPS["none"] else post

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        x = F.pad(x, extra) if extra else x
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is None:
            return finish(operator(x, weight, bias, *geometry, *post))
        return finish(operator.binary(x, residual, weight, bias, *geometry, "add", 1.0, *unary))

    return run
