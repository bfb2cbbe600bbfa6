"""Layers that are plain PyTorch in training and run on packed weights in inference.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dnnsep.backends.base import Verdict
from dnnsep.backends.executor import Executor
from dnnsep.backends.fused import FusedBackend
from dnnsep.backends.fused_chain import GIVEN, FusedChain, Step
from dnnsep.backends.fused_executor import FusedExecutor
from dnnsep.backends.onednn import POST_OPS
from dnnsep.backends.onednn_faults import grouped_verdict
from dnnsep.dense import Dense
from dnnsep.layer import (
    ACTIVATE,
    DTYPES,
    Geometry,
    Packed,
    Parameters,
    array,
    problem_of,
    weights_of,
)
from dnnsep.problem import Pair, Problem
from dnnsep.weights import Weights

# The backends that stand for the fused kernel where a layer is not a separable one.
FUSED_NAMES = ("auto", "fused")

Self = TypeVar("Self", bound="PackedLayer")
Tensors = tuple[Tensor | None, ...]


class Ready(NamedTuple):
    """A layer packed for a shape of the input: what runs it on an input and a residual, and the
    name of that."""

    shape: torch.Size
    run: Callable[[Tensor, Tensor | None], Tensor]
    runs_on: str


class Part(NamedTuple):
    """What the fused kernel runs."""

    problem: Problem
    weights: Weights


class PackedLayer(nn.Module):
    """Packs itself for each input shape when that first comes, in eval mode without gradients, on
    a CPU, in f32 or bf16, and again when its weights change. Otherwise it is plain PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self._packed: Packed[Ready] = Packed()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The layer on x; ``residual``, of the result's shape, is added to its sums."""
        if torch.compiler.is_compiling():
            return self.traced(x, residual)
        if self.training or torch.is_grad_enabled() or not _is_data(x):
            return self.plain(x, residual)
        key = (x.shape, x.dtype, residual is None)
        ready = self._packed.get(key, self.tensors(), lambda: self.pack(x, residual is not None))
        return ready.run(x, residual)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """In PyTorch's own operators."""
        raise NotImplementedError

    def traced(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """As torch.compile and torch.export shall see it."""
        return self.plain(x, residual)

    def tensors(self) -> Tensors:
        """What is packed."""
        raise NotImplementedError

    def pack(self, x: Tensor, with_residual: bool) -> Ready:
        """For inputs like x."""
        raise NotImplementedError

    def part(self, x: Tensor) -> Part | None:
        """What the fused kernel runs for inputs like x, whose values do not matter; None where it
        does not."""
        raise NotImplementedError

    def train(self: Self, mode: bool = True) -> Self:
        """As torch.nn.Module's; also forgets what was packed."""
        self._packed.clear()
        super().train(mode)
        return self

    @property
    def runs_on(self) -> dict[tuple[int, ...], str]:
        """What ran, by the input's shape: the backend and its kernels."""
        return {tuple(ready.shape): ready.runs_on for ready in self._packed.made.values()}


class PackedConv2d(PackedLayer):
    """An ordinary convolution and an activation: ``convolution`` has zero padding.

    Without groups it runs by the fused kernel; the others, and that too where ``backend`` is
    neither "auto" nor "fused" or the fused kernel is not there, run by oneDNN. The activation and a
    residual before it are fused.
    """

    def __init__(
        self, convolution: nn.Conv2d, activation: str = "none", backend: str = "auto"
    ) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = activation
        self.backend = backend
        self.train(convolution.training)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        y = self.convolution(x)
        return ACTIVATE[self.activation](y if residual is None else y + residual)

    def tensors(self) -> Tensors:
        return weight_and_bias(self.convolution)

    def pack(self, x: Tensor, with_residual: bool) -> Ready:
        layer = self.convolution
        if x.dim() != 4:
            return Ready(x.shape, self.plain, "torch")
        part = self.part(x)
        if part is not None:
            return fused(x.shape, part, with_residual)
        verdict = onednn_verdict(layer, x)
        if not verdict:
            return Ready(x.shape, self.plain, f"torch: {verdict.reason}")
        return Ready(x.shape, onednn_convolution(layer, self.activation, x.shape), "onednn")

    def part(self, x: Tensor) -> Part | None:
        layer = self.convolution
        if layer.groups != 1 or self.backend not in FUSED_NAMES:
            return None
        rest = Geometry(
            pair(layer.stride), padding_of(layer), pair(layer.dilation), ("none", self.activation)
        )
        return dense_part(x, *weight_and_bias(layer), rest)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, backend={self.backend!r}"


class PackedLinear(PackedLayer):
    """A linear layer on (N, C) and an activation, by the fused kernel where that is there.

    ``pooled``: it takes (N, C, H, W), averaged over its pixels first.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none", pooled: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.pooled = pooled
        self.train(linear.training)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        y = self.linear(x.mean((2, 3)) if self.pooled else x)
        return ACTIVATE[self.activation](y if residual is None else y + residual)

    def tensors(self) -> Tensors:
        return weight_and_bias(self.linear)

    def pack(self, x: Tensor, with_residual: bool) -> Ready:
        part = self.part(x)
        if part is None or with_residual:
            return Ready(x.shape, self.plain, "torch")
        return flat(fused(x.shape, part, with_residual))

    def part(self, x: Tensor) -> Part | None:
        weight, bias = weight_and_bias(self.linear)
        weight, none = weight[:, :, None, None], (0, 0, 0, 0)
        activations = ("none", self.activation)
        if x.dim() != (4 if self.pooled else 2):
            return None
        if not self.pooled:
            return dense_part(
                x[:, :, None, None], weight, bias, Geometry((1, 1), none, (1, 1), activations)
            )
        # The mean is a depthwise convolution with a kernel as large as the image.
        kernel = pair(tuple(x.shape[2:]))
        mean = torch.full((x.shape[1], 1, *kernel), 1 / prod(kernel))
        parameters = Parameters(mean, None, weight, bias)
        problem = problem_of(x, parameters, Geometry((1, 1), none, (1, 1), activations))
        if not FusedBackend().supports(problem):
            return None
        return Part(problem, weights_of(problem, parameters))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, pooled={self.pooled}"


def dense_part(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Part | None:
    """A convolution's, (OC, C, kh, kw) weights, for inputs like x: (N, C, H, W)."""
    try:
        problem = Dense(
            batch=x.shape[0],
            in_channels=x.shape[1],
            out_channels=weight.shape[0],
            height=x.shape[2],
            width=x.shape[3],
            kernel=pair(tuple(weight.shape[2:])),
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            bias=bias is not None,
            activations=geometry.activations,
            dtype=DTYPES[x.dtype],
        )
    except ValueError:  # padded beyond the kernel's reach
        return None
    if not FusedBackend().supports(problem):
        return None
    rows = array(weight.permute(0, 2, 3, 1).reshape(problem.out_channels, -1, 1, 1))
    biases = (None, None) if bias is None else (np.empty(0, np.float32), array(bias))
    none = np.empty(problem.depthwise_shape, np.float32)
    return Part(problem, Weights(none, biases[0], rows, biases[1]))


def fused(shape: torch.Size, part: Part, with_residual: bool) -> Ready:
    """To run a part alone."""
    executor = FusedExecutor.chosen(*part)
    chain = FusedChain([Step(executor, GIVEN if with_residual else None)])

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        return chain.run(x.contiguous(memory_format=torch.channels_last), residual)

    return Ready(shape, run, name_of(executor))


def flat(ready: Ready) -> Ready:
    """With (N, OC) as the result, for the result's one pixel; an input (N, C) is taken as one."""

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        images = x if x.dim() == 4 else x.contiguous()[:, :, None, None]
        return ready.run(images, residual).flatten(1)

    return ready._replace(run=run)


def ready(executor: Executor) -> Ready:
    """To run an executor; a residual is added to its result."""

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        y = executor.run(x.contiguous(memory_format=torch.channels_last))
        return y if residual is None else y.add_(residual)

    return Ready(torch.Size(executor.problem.input_shape), run, name_of(executor))


def name_of(executor: Executor) -> str:
    return " ".join((executor.backend, *executor.impls))


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
    post = POST_OPS[activation]
    unary = (None, [], None) if activation == "none" else post

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        x = F.pad(x, extra) if extra else x
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is None:
            y: Tensor = operator(x, weight, bias, *geometry, *post)
            return y
        y = operator.binary(x, residual, weight, bias, *geometry, "add", 1.0, *unary)
        return y

    return run


def weight_and_bias(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
    own = layer._parameters
    weight = own.get("weight")  # a shorter way than the attributes, which every call takes
    if weight is None or "bias" not in own:  # parametrized
        return layer.weight, layer.bias
    return weight, own["bias"]


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


def pair(values: tuple[int, ...]) -> Pair:
    first, second = values
    return first, second


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


def _is_data(x: Tensor) -> bool:
    """Whether x holds numbers that a backend can work on, rather than standing for some."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and x.dtype in DTYPES
        # torch.jit.trace would record the numbers and not the layer.
        and torch._C._get_tracing_state() is None
        and 0 not in x.shape
        and not torch.is_autocast_enabled("cpu")
    )
