"""Layers that are plain PyTorch in training and run on packed weights in inference.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dnnsep.backends.executor import TORCH_DTYPES, Executor
from dnnsep.backends.fused import FusedBackend
from dnnsep.backends.fused_executor import FusedExecutor, FusedProgram
from dnnsep.backends.tensors import TORCH_ACTIVATIONS
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.program import GIVEN, INPUT, Step, chosen_step
from dnnsep.codegen.sources import Sources
from dnnsep.nn.convolution import (
    convolution_problem,
    is_depthwise,
    onednn_convolution,
    onednn_verdict,
    weight_and_bias,
)
from dnnsep.nn.layer import DTYPES, array
from dnnsep.nn.memo import Memo, Tensors
from dnnsep.problem import Problem
from dnnsep.weights import Weights

# The backends that stand for the fused kernel where a layer is not a separable one.
FUSED_NAMES = ("auto", "fused")

Self = TypeVar("Self", bound="PackedLayer")


class Ready(NamedTuple):
    """A layer packed for a shape of the input: what runs it on an input and a residual, the name of
    that, and the steps of the fused kernel's program, if it is one."""

    shape: torch.Size
    run: Callable[[Tensor, Tensor | None], Tensor]
    runs_on: str
    steps: tuple[Step, ...] = ()


class PackedLayer(nn.Module):
    """Packs itself for each input shape when that first comes, in eval mode without gradients, on
    a CPU, in f32 or bf16, and again when its weights change. Otherwise it is plain PyTorch.

    The fused kernel's weights are packed once for all shapes. Where ``tune`` is true its plans may
    be measured when it is prepared (see dnnsep.codegen.tuner).
    """

    tune = True

    def __init__(self) -> None:
        super().__init__()
        self._ready: Memo[Ready] = Memo()
        self._packings: Memo[NDArray[np.uint8]] = Memo()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns the layer's result on x; ``residual``, of the result's shape, is added to its
        sums."""
        if torch.compiler.is_compiling():
            return self.traced(x, residual)
        if self.training or torch.is_grad_enabled() or not _is_data(x):
            return self.plain(x, residual)
        added = None if residual is None else (residual.shape, residual.dtype)
        key = (x.shape, x.dtype, added)
        ready = self._ready.get(key, self.tensors(), lambda: self.pack(x, residual))
        return ready.run(x, residual)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Returns the result by PyTorch's own operators."""
        raise NotImplementedError

    def traced(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Returns the result as torch.compile and torch.export shall see it."""
        return self.plain(x, residual)

    def tensors(self) -> Tensors:
        """Returns the tensors that are packed."""
        raise NotImplementedError

    def pack(self, x: Tensor, residual: Tensor | None) -> Ready:
        """Returns what runs the layer on inputs and residuals like these. What torch refuses, or
        broadcasts, is left to it."""
        raise NotImplementedError

    def problems(self, x: Tensor) -> list[Problem] | None:
        """Returns what the fused kernel runs, one after the other, on inputs like x, whose values
        do not matter; None where it does not."""
        raise NotImplementedError

    def weights(self, problem: Problem) -> Weights:
        """Returns the weights of one of the layer's problems."""
        raise NotImplementedError

    def steps(self, problems: list[Problem], sources: Sources[int], first: int) -> list[Step]:
        """Returns the layer's problems as steps of a program, numbered from ``first``: the first
        reads x and the scale, the last the residual."""
        last, threads = len(problems) - 1, torch.get_num_threads()
        steps = []
        for number, problem in enumerate(problems):
            links = Sources(
                first + number - 1 if number else sources.x,
                sources.residual if number == last else None,
                None if number else sources.scale,
            )
            steps.append(chosen_step(problem, self._packed(problem), threads, links, self.tune))
        return steps

    def _packed(self, problem: Problem) -> Callable[[Packing], NDArray[np.uint8]]:
        return lambda packing: self._packings.get(
            packing, self.tensors(), lambda: packing.pack(self.weights(problem))
        )

    def train(self: Self, mode: bool = True) -> Self:
        """As torch.nn.Module's; also forgets what was packed."""
        self._ready.clear()
        self._packings.clear()
        super().train(mode)
        return self

    @property
    def runs_on(self) -> dict[tuple[int, ...], str]:
        """Returns what ran, the backend and its kernels, by the input's shape."""
        return {tuple(ready.shape): ready.runs_on for ready in self._ready.made.values()}

    @property
    def steps_made(self) -> list[Step]:
        """Returns the steps of the fused kernel for all shapes of the input so far."""
        return [step for ready in self._ready.made.values() for step in ready.steps]


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
        """Returns the result on x, multiplied by ``scale``, (N, C, 1, 1), where that is given."""
        return super().forward(x if scale is None else x * scale, residual)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        y = self.convolution(self._pooled(x))
        return TORCH_ACTIVATIONS[self.activation].function(y if residual is None else y + residual)

    def tensors(self) -> Tensors:
        return weight_and_bias(self.convolution)

    def pack(self, x: Tensor, residual: Tensor | None) -> Ready:
        layer = self.convolution
        if x.dim() != 4 or x.shape[1] != layer.in_channels:
            return Ready(x.shape, self.plain, "torch")
        problems = self.problems(x)
        if problems is not None and adds(problems[-1], residual):
            return fused(self, x.shape, problems, residual is not None)
        image = self._pooled(x)
        if residual is not None and not is_like(residual, layer(image)):
            return Ready(x.shape, self.plain, "torch: a residual of another shape or dtype")
        verdict = onednn_verdict(layer, image)
        if not verdict:
            return Ready(x.shape, self.plain, f"torch: {verdict.reason}")
        convolution = onednn_convolution(layer, self.activation, image)

        def run(x: Tensor, residual: Tensor | None) -> Tensor:
            return convolution(self._pooled(x), residual)

        return Ready(x.shape, run, "onednn")

    def _pooled(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True) if self.pooled else x

    def problems(self, x: Tensor) -> list[Problem] | None:
        layer = self.convolution
        if self.backend not in FUSED_NAMES or x.shape[1] != layer.in_channels:
            return None
        if layer.groups != 1 and not is_depthwise(layer):
            return None
        means = []
        if self.pooled and x.shape[2:] != (1, 1):
            means, x = [mean_of(x)], x[:, :, :1, :1]
        problem = convolution_problem(layer, x, self.activation)
        return [*means, problem] if problem and FusedBackend().supports(problem) else None

    def weights(self, problem: Problem) -> Weights:
        if problem.kind == "mean":
            return Weights()
        weight, bias = weight_and_bias(self.convolution)
        arrays = array(weight), None if bias is None else array(bias)
        return Weights(*arrays) if problem.kind == "depthwise" else Weights(None, None, *arrays)

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
        return TORCH_ACTIVATIONS[self.activation].function(y if residual is None else y + residual)

    def tensors(self) -> Tensors:
        return weight_and_bias(self.linear)

    def pack(self, x: Tensor, residual: Tensor | None) -> Ready:
        problems = self.problems(x)
        if problems is None or residual is not None:
            return Ready(x.shape, self.plain, "torch")
        images = fused(self, x.shape, problems, with_residual=False)
        return rows_of(images, self.result_shape(x), takes_rows=not self.pooled)

    def problems(self, x: Tensor) -> list[Problem] | None:
        if x.dim() < 2 or (self.pooled and x.dim() != 4):
            return None
        channels = x.shape[1] if self.pooled else x.shape[-1]
        if channels != self.linear.in_features:
            return None
        means = [mean_of(x)] if self.pooled and x.shape[2:] != (1, 1) else []
        problem = Problem(
            batch=x.shape[0] if self.pooled else x.numel() // channels,
            in_channels=channels,
            out_channels=self.linear.out_features,
            height=1,
            width=1,
            kernel=(1, 1),
            bias=self.linear.bias is not None,
            activations=(self.activation,),
            dtype=DTYPES[x.dtype],
            kind="linear",
        )
        return [*means, problem] if FusedBackend().supports(problem) else None

    def weights(self, problem: Problem) -> Weights:
        if problem.kind == "mean":
            return Weights()
        weight, bias = weight_and_bias(self.linear)
        biases = None if bias is None else array(bias)
        return Weights(pointwise=array(weight)[:, :, None, None], pointwise_bias=biases)

    def result_shape(self, x: Tensor) -> torch.Size:
        """Returns the shape of the result on x."""
        rows = x.shape[:1] if self.pooled else x.shape[:-1]
        return torch.Size((*rows, self.linear.out_features))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, pooled={self.pooled}"


def mean_of(x: Tensor) -> Problem:
    """Returns the mean over all pixels of images like x: (N, C, H, W)."""
    batch, channels, height, width = x.shape
    return Problem.mean(batch, channels, height, width, DTYPES[x.dtype])


def adds(problem: Problem, residual: Tensor | None) -> bool:
    """Returns whether the fused kernel can add a residual to a problem's sums, if there is one."""
    if residual is None:
        return True
    alike = tuple(residual.shape) == problem.output_shape
    same_dtype = residual.dtype == TORCH_DTYPES[problem.dtype]
    return alike and same_dtype and problem.sums_over_channels


def is_like(residual: Tensor, result: Tensor) -> bool:
    """Returns whether a residual has the shape and the dtype of a result."""
    return (residual.shape, residual.dtype) == (result.shape, result.dtype)


def fused(
    layer: PackedLayer, shape: torch.Size, problems: list[Problem], with_residual: bool
) -> Ready:
    """Returns what runs a layer's problems one after the other on inputs of a shape."""
    sources = Sources(INPUT, GIVEN if with_residual else None)
    steps = layer.steps(problems, sources, 0)
    program = FusedProgram(steps)

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        return program.run(x.contiguous(memory_format=torch.channels_last), residual)

    return Ready(shape, run, f"fused {program.impl}", tuple(steps))


def rows_of(images: Ready, shape: torch.Size, takes_rows: bool) -> Ready:
    """Returns what gives a result (..., OC) of a shape, and maybe takes an input (..., C)."""

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        y = images.run(as_pixels(x) if takes_rows else x, residual)
        return y.permute(0, 2, 3, 1).reshape(shape)

    return images._replace(run=run)


def as_pixels(x: Tensor) -> Tensor:
    """Returns (..., C) as the channels-last (1, C, 1, rows) that it is in memory."""
    return x.contiguous().view(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def ready(executor: Executor) -> Ready:
    """Returns what runs an executor; a residual is added to its result."""

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        y = executor.run(x.contiguous(memory_format=torch.channels_last))
        if residual is None:
            return y
        return y.add_(residual) if is_like(residual, y) else y + residual

    name = " ".join((executor.backend, *executor.impls))
    steps = (executor.step,) if isinstance(executor, FusedExecutor) else ()
    return Ready(torch.Size(executor.problem.input_shape), run, name, steps)


def _is_data(x: Tensor) -> bool:
    """Returns whether x holds numbers that a backend can work on, rather than standing for some."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and x.dtype in DTYPES
        # torch.jit.trace would record the numbers and not the layer.
        and torch._C._get_tracing_state() is None
        and 0 not in x.shape
        and not torch.is_autocast_enabled("cpu")
    )
