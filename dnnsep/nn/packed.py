"""Layers that are plain PyTorch in training and run on packed weights in inference.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dnnsep.backends.executor import TORCH_DTYPES, Executor
from dnnsep.backends.fused_chain import GIVEN, INPUT, FusedChain
from dnnsep.codegen.separable import takes_residual
from dnnsep.nn.convolution import (
    is_depthwise,
    onednn_convolution,
    onednn_verdict,
    padding_of,
    pair,
    weight_and_bias,
)
from dnnsep.nn.layer import ACTIVATE, DTYPES, Geometry, Packed
from dnnsep.nn.parts import Part, chained, dense_parts, depthwise_parts

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
        added = None if residual is None else (residual.shape, residual.dtype)
        key = (x.shape, x.dtype, added)
        ready = self._packed.get(key, self.tensors(), lambda: self.pack(x, residual))
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

    def pack(self, x: Tensor, residual: Tensor | None) -> Ready:
        """For inputs and residuals like these. What torch refuses, or broadcasts, is left to it."""
        raise NotImplementedError

    def parts(self, x: Tensor) -> list[Part] | None:
        """What the fused kernel runs, one after the other, for inputs like x, whose values do not
        matter; None where it does not."""
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

    ``pooled``: it is on the mean over all pixels. An ordinary or a depthwise convolution runs by
    the fused kernel; others, and these too where ``backend`` is neither "auto" nor "fused" or the
    fused kernel is not there, run by oneDNN. The activation and a residual before it are fused.
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        activation: str = "none",
        backend: str = "auto",
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = activation
        self.backend = backend
        self.pooled = pooled
        self.train(convolution.training)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """The layer on x, multiplied by ``scale`` where that is given: (N, C, 1, 1)."""
        return super().forward(x if scale is None else x * scale, residual)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        y = self.convolution(self._pooled(x))
        return ACTIVATE[self.activation](y if residual is None else y + residual)

    def tensors(self) -> Tensors:
        return weight_and_bias(self.convolution)

    def pack(self, x: Tensor, residual: Tensor | None) -> Ready:
        layer = self.convolution
        if x.dim() != 4 or x.shape[1] != layer.in_channels:
            return Ready(x.shape, self.plain, "torch")
        parts = self.parts(x)
        if parts is not None and adds(parts, residual):
            return fused(x.shape, parts, residual is not None)
        image = self._pooled(x)
        if residual is not None and not is_like(residual, layer(image)):
            return Ready(x.shape, self.plain, "torch: a residual of another shape or dtype")
        verdict = onednn_verdict(layer, image)
        if not verdict:
            return Ready(x.shape, self.plain, f"torch: {verdict.reason}")
        convolution = onednn_convolution(layer, self.activation, image.shape)

        def run(x: Tensor, residual: Tensor | None) -> Tensor:
            return convolution(self._pooled(x), residual)

        return Ready(x.shape, run, "onednn")

    def _pooled(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True) if self.pooled else x

    def parts(self, x: Tensor) -> list[Part] | None:
        layer = self.convolution
        if self.backend not in FUSED_NAMES:
            return None
        placed = pair(layer.stride), padding_of(layer), pair(layer.dilation)
        weight, bias = weight_and_bias(layer)
        if is_depthwise(layer):
            return depthwise_parts(x, weight, bias, Geometry(*placed, (self.activation, "none")))
        if layer.groups != 1:
            return None
        geometry = Geometry(*placed, ("none", self.activation))
        return dense_parts(x, weight, bias, geometry, self.pooled)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, backend={self.backend!r}, pooled={self.pooled}"


class PackedLinear(PackedLayer):
    """A linear layer on (..., C) and an activation, by the fused kernel where that is there.

    ``pooled``: it takes (N, C, H, W), averaged over its pixels first, and gives (N, OC).
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

    def pack(self, x: Tensor, residual: Tensor | None) -> Ready:
        parts = self.parts(x)
        if parts is None or residual is not None:
            return Ready(x.shape, self.plain, "torch")
        images = fused(x.shape, parts, with_residual=False)
        return rows_of(images, self.result_shape(x), takes_rows=not self.pooled)

    def parts(self, x: Tensor) -> list[Part] | None:
        if x.dim() < 2 or (self.pooled and x.dim() != 4):
            return None
        weight, bias = weight_and_bias(self.linear)
        geometry = Geometry((1, 1), (0, 0, 0, 0), (1, 1), ("none", self.activation))
        images = x if self.pooled else as_pixels(x)
        return dense_parts(images, weight[:, :, None, None], bias, geometry, self.pooled)

    def result_shape(self, x: Tensor) -> torch.Size:
        rows = x.shape[:1] if self.pooled else x.shape[:-1]
        return torch.Size((*rows, self.linear.out_features))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, pooled={self.pooled}"


def adds(parts: list[Part], residual: Tensor | None) -> bool:
    """Whether the fused kernel can add a residual, if there is one."""
    if residual is None:
        return True
    problem = parts[-1].problem
    alike = tuple(residual.shape) == problem.output_shape
    return alike and residual.dtype == TORCH_DTYPES[problem.dtype] and takes_residual(problem)


def is_like(residual: Tensor, result: Tensor) -> bool:
    return (residual.shape, residual.dtype) == (result.shape, result.dtype)


def fused(shape: torch.Size, parts: list[Part], with_residual: bool) -> Ready:
    """To run parts one after the other."""
    steps = chained(parts, 0, INPUT, GIVEN if with_residual else None)
    chain = FusedChain(steps)

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        return chain.run(x.contiguous(memory_format=torch.channels_last), residual)

    return Ready(shape, run, name_of(steps[-1].executor))


def rows_of(images: Ready, shape: torch.Size, takes_rows: bool) -> Ready:
    """With a result (..., OC) of a shape, and maybe an input (..., C)."""

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        y = images.run(as_pixels(x) if takes_rows else x, residual)
        return y.permute(0, 2, 3, 1).reshape(shape)

    return images._replace(run=run)


def as_pixels(x: Tensor) -> Tensor:
    """(..., C) as the channels-last (1, C, 1, rows) that it is in memory."""
    return x.contiguous().view(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def ready(executor: Executor) -> Ready:
    """To run an executor; a residual is added to its result."""

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        y = executor.run(x.contiguous(memory_format=torch.channels_last))
        if residual is None:
            return y
        return y.add_(residual) if is_like(residual, y) else y + residual

    return Ready(torch.Size(executor.problem.input_shape), run, name_of(executor))


def name_of(executor: Executor) -> str:
    return " ".join((executor.backend, *executor.impls))


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
