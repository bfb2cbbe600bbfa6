"""Layers that are plain PyTorch in training and run on packed weights in inference.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dnnsep.backends.executor import TORCH_DTYPES, Executor
from dnnsep.backends.fused_executor import FusedProgram
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.nn.layer import DTYPES
from dnnsep.nn.memo import Memo, Tensors
from dnnsep.problem import Problem

Self = TypeVar("Self", bound="PackedLayer")


class Ready(NamedTuple):
    """A layer packed for a shape of the input: what runs it on an input and a residual, and the
    name of that."""

    shape: torch.Size
    run: Callable[[Tensor, Tensor | None], Tensor]
    runs_on: str


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
        tensors = self.tensors()
        if any(tensor is not None and tensor.dtype != x.dtype for tensor in tensors):
            return self.plain(x, residual)  # torch says what is wrong with that
        added = None if residual is None else (residual.shape, residual.dtype)
        key = (x.shape, x.dtype, added)
        ready = self._ready.get(key, tensors, lambda: self.pack(x, residual))
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

    def train(self: Self, mode: bool = True) -> Self:
        """As torch.nn.Module's; also forgets what was packed."""
        self.forget()
        super().train(mode)
        return self

    def forget(self) -> None:
        """Forgets what was packed."""
        self._ready.clear()
        self._packings.clear()

    def __prepare_scriptable__(self) -> NoReturn:
        """Raises RuntimeError: torch.jit.script asks this first."""
        raise RuntimeError(
            f"{type(self).__name__}: torch.jit.script cannot compile generated kernels; "
            "torch.jit.trace and torch.export take the layer as plain operators"
        )

    @property
    def runs_on(self) -> dict[tuple[int, ...], str]:
        """Returns what ran, the backend and its kernels, by the input's shape."""
        return {tuple(ready.shape): ready.runs_on for ready in self._ready.made.values()}


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


def fused(step: LayerStep, shape: torch.Size) -> Ready:
    """Returns what runs a step on inputs of a shape, and on residuals where it takes one."""
    program = FusedProgram(step)

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        return program.run(x.contiguous(memory_format=torch.channels_last), residual)

    return Ready(shape, run, f"fused {program.impl}")


def ready(executor: Executor) -> Ready:
    """Returns what runs an executor; a residual is added to its result."""

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        y = executor.run(x.contiguous(memory_format=torch.channels_last))
        if residual is None:
            return y
        return y.add_(residual) if is_like(residual, y) else y + residual

    name = " ".join((executor.backend, *executor.impls))
    return Ready(torch.Size(executor.problem.input_shape), run, name)


def _is_data(x: Tensor) -> bool:
    """Returns whether x holds numbers that a backend can work on, rather than standing for some."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and x.dtype in DTYPES
        # torch.jit.trace would record the numbers and not the layer.
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and 0 not in x.shape
        and not torch.is_autocast_enabled("cpu")
    )
