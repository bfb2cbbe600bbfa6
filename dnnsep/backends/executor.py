"""A problem made ready on a torch backend. Imports torch: import it from inside functions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dnnsep.dtypes import PRECISIONS
from dnnsep.problem import Problem

TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
TENSOR_DTYPES = {**TORCH_DTYPES, "u8": torch.uint8, "s8": torch.int8}

# What the input and the output of a problem are in torch, by its dtype.
INPUT_DTYPES = {name: TENSOR_DTYPES[p.source.name] for name, p in PRECISIONS.items()}
OUTPUT_DTYPES = {name: TENSOR_DTYPES[p.destination.name] for name, p in PRECISIONS.items()}


@dataclass(frozen=True)
class Stage:
    """One step of an executor: takes a channels-last tensor, returns a new one."""

    name: str
    run: Callable[[Tensor], Tensor]


class Executor:
    """A problem with its weights packed, ready to be called again and again from any thread.

    ``stages`` run one after the other and can be timed apart. ``backend`` names who prepared it.
    ``impls`` are the engine's own names of what runs, where oneDNN's log does not tell; ``why`` is
    what the backend auto says of its choice. ``output`` says where a bound call's result goes;
    ``on_torch_threads`` whether torch's pool does the work.
    """

    impls: tuple[str, ...] = ()
    why = ""
    output = "allocated by each call"
    on_torch_threads = True

    def __init__(self, backend: str, problem: Problem, stages: Sequence[Stage]) -> None:
        self.backend = backend
        self.problem = problem
        self.stages = tuple(stages)
        # Looked up once: the checks of a call take half a microsecond.
        self._input_dtype = INPUT_DTYPES[problem.dtype]
        self._output_dtype = OUTPUT_DTYPES[problem.dtype]
        self._input_shape = torch.Size(problem.input_shape)
        self._output_shape = torch.Size(problem.output_shape)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Run the layer on x: (N, C, H, W), channels-last in memory, of the problem's dtype.

        Returns (N, OC, OH, OW), channels-last. The frameworks' operators allocate their results,
        so ``out``, where given, costs one copy. No gradient is recorded. Raises ValueError if x
        or out do not fit the problem.
        """
        self._check_input(x)
        if out is not None:
            self._check("out", out, self._output_shape, self._output_dtype)
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.run(x, out)
        return self.run(x, out)

    def bind(self, x: Tensor) -> Callable[[], Tensor]:
        """A call that runs the layer on x again and again, for measuring.

        Everything that a user's loop does once beforehand is done here. The call returns
        (N, OC, OH, OW) in the engine's own layout, possibly the same memory each time, and may be
        made from one thread only. Raises ValueError if x does not fit the problem.
        """
        self._check_input(x)
        return partial(self, x)

    def plans(self) -> list[dict[str, Any]]:
        """The ways to run it that an engine of ours weighed, the one taken first."""
        return []

    def run(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """As a call without gradients does, x and out not checked."""
        for stage in self.stages:
            x = stage.run(x)
        return x if out is None else out.copy_(x)

    def _check_input(self, x: Tensor) -> None:
        self._check("x", x, self._input_shape, self._input_dtype)

    def _check(self, name: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
        if tensor.shape != shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, the problem has {tuple(shape)}")
        if tensor.dtype is not dtype:
            raise ValueError(f"{name}: dtype {tensor.dtype}, the problem has {self.problem.dtype}")
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"{name}: must be channels-last in memory")


class EngineExecutor(Executor):
    """A layer that another engine runs as a whole, on an input and an output bound beforehand.

    ``bind_input`` takes x: (N, C, H, W) channels-last of the problem's dtype, hands it to the
    engine in the layout the engine likes best, binds an output, and returns the call that runs the
    engine and answers with that output as (N, OC, OH, OW), whatever its layout and dtype.
    """

    output = "bound beforehand"
    on_torch_threads = False

    def __init__(
        self,
        backend: str,
        problem: Problem,
        bind_input: Callable[[Tensor], Callable[[], Tensor]],
        impls: Sequence[str] = (),
    ) -> None:
        super().__init__(backend, problem, ())
        self._bind_input = bind_input
        self._lock = threading.Lock()
        self.impls = tuple(impls)

    def bind(self, x: Tensor) -> Callable[[], Tensor]:
        self._check_input(x)
        return self._bind_input(x)

    def run(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty(
                self._output_shape, dtype=self._output_dtype, memory_format=torch.channels_last
            )
        with self._lock:  # the engine has one set of bound buffers
            return out.copy_(self._bind_input(x)())
