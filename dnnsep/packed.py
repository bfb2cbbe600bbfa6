"""Layers that are plain PyTorch in training and run on packed weights in inference.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dnnsep.backends.auto import AutoBackend
from dnnsep.backends.executor import TORCH_DTYPES, Executor
from dnnsep.backends.fused import FusedBackend
from dnnsep.backends.onednn import POST_OPS
from dnnsep.backends.tensors import ACTIVATE_IN_PLACE
from dnnsep.layer import ACTIVATE, Geometry, Packed, Parameters, prepare, problem_of
from dnnsep.problem import Problem

_DTYPES = frozenset(TORCH_DTYPES.values())

Self = TypeVar("Self", bound="PackedLayer")
Tensors = tuple[Tensor | None, ...]


class Ready(NamedTuple):
    """A layer packed for a shape of the input: what runs it on an input and a residual, and the
    name of that."""

    shape: torch.Size
    run: Callable[[Tensor, Tensor | None], Tensor]
    runs_on: str


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

    A pointwise one is a separable layer whose depthwise stage does nothing, which the fused kernel
    runs; the others, and that one too where ``backend`` is neither "auto" nor "fused" or the fused
    kernel is not there, run by oneDNN. The activation and a residual before it are fused.
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
        inside = "none" if with_residual else self.activation
        parts = self.separable(x, inside)
        if parts is not None and runs_fused(problem_of(x, *parts), self.backend):
            return ready(prepare(x, *parts, "fused"), self.activation)
        return Ready(x.shape, onednn_convolution(layer, self.activation, x.shape), "onednn")

    def separable(self, x: Tensor, activation: str) -> tuple[Parameters, Geometry] | None:
        """The separable layer that a pointwise convolution is; None for another one."""
        if not is_pointwise(self.convolution):
            return None
        return as_separable(self.convolution.weight, self.convolution.bias, activation)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, backend={self.backend!r}"


class PackedLinear(PackedLayer):
    """A linear layer on (N, C) and an activation, by the fused kernel where that is there: images
    of one pixel are what it has to do with."""

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.train(linear.training)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        y = self.linear(x)
        return ACTIVATE[self.activation](y if residual is None else y + residual)

    def tensors(self) -> Tensors:
        return weight_and_bias(self.linear)

    def pack(self, x: Tensor, with_residual: bool) -> Ready:
        if x.dim() != 2 or with_residual:
            return Ready(x.shape, self.plain, "torch")
        weight = self.linear.weight[:, :, None, None]
        parts = as_separable(weight, self.linear.bias, self.activation)
        pixels = x[:, :, None, None]
        if not runs_fused(problem_of(pixels, *parts), "auto"):
            return Ready(x.shape, self.plain, "torch")
        executor = prepare(pixels, *parts, "fused")

        def run(x: Tensor, _: Tensor | None) -> Tensor:
            return executor.run(x.contiguous()[:, :, None, None]).flatten(1)

        return Ready(x.shape, run, name_of(executor))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


def as_separable(
    weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Parameters, Geometry]:
    """The separable layer that does what (OC, C, 1, 1) weights do: its depthwise stage does
    nothing."""
    ones = torch.ones(weight.shape[1], 1, 1, 1, dtype=weight.dtype)
    geometry = Geometry((1, 1), (0, 0, 0, 0), (1, 1), ("none", activation))
    return Parameters(ones, None, weight, bias), geometry


def runs_fused(problem: Problem, backend: str) -> bool:
    """Whether a backend's name means the fused kernel, and that can run the problem."""
    if backend == "auto":
        return AutoBackend().choose(problem).name == "fused"
    return backend == "fused" and bool(FusedBackend().supports(problem))


def ready(executor: Executor, activation: str) -> Ready:
    """To run an executor; ``activation`` follows a residual."""
    finish = ACTIVATE_IN_PLACE[activation]

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        y = executor.run(x.contiguous(memory_format=torch.channels_last))
        return y if residual is None else finish(y.add_(residual))

    return Ready(torch.Size(executor.problem.input_shape), run, name_of(executor))


def name_of(executor: Executor) -> str:
    return " ".join((executor.backend, *executor.impls))


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
        and x.dtype in _DTYPES
        # torch.jit.trace would record the numbers and not the layer.
        and torch._C._get_tracing_state() is None
        and 0 not in x.shape
        and not torch.is_autocast_enabled("cpu")
    )
