"""A problem with its generated kernel. Imports torch: import it from inside functions."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnsep.backends.executor import Executor
from dnnsep.codegen import team
from dnnsep.codegen.choose import choose, describe
from dnnsep.codegen.kernel import Kernel, compiled
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.pack import packed
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.separable import TASK_FIELDS
from dnnsep.problem import Problem
from dnnsep.weights import Weights

_ALIGN = 64

Task = ctypes.Array[ctypes.c_void_p]


class FusedExecutor(Executor):
    """Runs on torch's threads, by a plan."""

    output = "bound beforehand"

    def __init__(self, backend: str, problem: Problem, weights: Weights, plan: Plan) -> None:
        super().__init__(backend, problem, ())
        self.plan = plan
        self.impls = (f"fused:{plan.isa.name}",)
        self._threads = torch.get_num_threads()
        self._packed = packed(problem, plan, weights)
        self._parallel = team.parallel()
        self._local = threading.local()

    @classmethod
    def chosen(cls, problem: Problem, weights: Weights) -> FusedExecutor:
        """By the plan for this CPU and torch's threads; the backend must support the problem."""
        plan = choose(problem, this_isa(), torch.get_num_threads())
        return cls("fused", problem, weights, plan)

    def plans(self) -> list[dict[str, Any]]:
        return describe(self.problem, self.plan, self._threads)

    def bind(self, x: Tensor) -> Callable[[], Tensor]:
        self._check("x", x, self._input_shape)
        out = self._empty()
        task, scratch = self._new_task()
        task[0], task[1] = x.data_ptr(), out.data_ptr()
        address, parts, parallel = self._kernel_for(out).address, self.plan.parts, self._parallel

        # The kernel, its weights, the input and the scratch memory are only known by address.
        def call(_keep: object = (self, x, scratch)) -> Tensor:
            parallel(address, task, parts, 0)
            return out

        return call

    def run(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = self._empty()
        task = self._task()
        task[0], task[1] = x.data_ptr(), out.data_ptr()
        self._parallel(self._kernel_for(out).address, task, self.plan.parts, 0)
        return out

    def _empty(self) -> Tensor:
        return torch.empty(self._output_shape, dtype=self._dtype, memory_format=torch.channels_last)

    def _kernel_for(self, out: Tensor) -> Kernel:
        """Streaming stores need whole lines."""
        if self.plan.streaming and out.data_ptr() % _ALIGN:
            return self._unaligned_kernel
        return self.kernel

    @cached_property
    def kernel(self) -> Kernel:
        """Compiled when first asked for: a chain of layers may have another one."""
        return compiled(self.problem, self.plan)

    @cached_property
    def _unaligned_kernel(self) -> Kernel:
        return compiled(self.problem, replace(self.plan, streaming=False))

    def _task(self) -> Task:
        """This thread's: every caller has scratch memory of its own."""
        found = getattr(self._local, "task", None)
        if found is None:
            found, self._local.scratch = self._new_task()
            self._local.task = found
        return found

    def _new_task(self) -> tuple[Task, np.ndarray]:
        scratch = np.zeros(self.kernel.scratch_bytes + _ALIGN, np.uint8)
        start = scratch.ctypes.data
        return self.task(start + -start % _ALIGN), scratch

    def task(self, scratch: int) -> Task:
        """The kernel's argument with everything but x, y, the residual and the scale filled in."""
        return (ctypes.c_void_p * len(TASK_FIELDS))(
            None,
            None,
            self._packed.ctypes.data,
            scratch,
            team.address_of("omp_get_thread_num"),
            team.address_of("omp_get_num_threads"),
            None,
        )
