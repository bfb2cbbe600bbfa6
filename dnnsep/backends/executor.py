"""A problem made ready on a torch backend. Imports torch: import it from inside functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dnnsep.problem import Problem

TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Stage:
    """One step of an executor: takes a channels-last tensor, returns a new one."""

    name: str
    run: Callable[[Tensor], Tensor]


class Executor:
    """A problem with its weights packed, ready to be called again and again from any thread.

    ``stages`` run one after the other and can be timed apart. ``backend`` names who prepared it.
    """

    def __init__(self, backend: str, problem: Problem, stages: Sequence[Stage]) -> None:
        self.backend = backend
        self.problem = problem
        self.stages = tuple(stages)
        # Looked up once: the checks of a call take half a microsecond.
        self._dtype = TORCH_DTYPES[problem.dtype]
        self._input_shape = torch.Size(problem.input_shape)
        self._output_shape = torch.Size(problem.output_shape)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Run the layer on x: (N, C, H, W), channels-last in memory, of the problem's dtype.

        Returns (N, OC, OH, OW), channels-last. The frameworks' operators allocate their results,
        so ``out``, where given, costs one copy. No gradient is recorded. Raises ValueError if x
        or out do not fit the problem.
        """
        self._check("x", x, self._input_shape)
        if out is not None:
            self._check("out", out, self._output_shape)
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._run(x, out)
        return self._run(x, out)

    def _run(self, x: Tensor, out: Tensor | None) -> Tensor:
        for stage in self.stages:
            x = stage.run(x)
        return x if out is None else out.copy_(x)

    def _check(self, name: str, tensor: Tensor, shape: torch.Size) -> None:
        if tensor.shape != shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, the problem has {tuple(shape)}")
        if tensor.dtype is not self._dtype:
            raise ValueError(f"{name}: dtype {tensor.dtype}, the problem has {self.problem.dtype}")
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"{name}: must be channels-last in memory")
