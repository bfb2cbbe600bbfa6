"""A problem with its generated kernel. Imports torch: import it from inside functions."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import torch
from torch import Tensor

from dnnsep.backends.executor import Executor
from dnnsep.codegen import openmp
from dnnsep.codegen.isa import this_isa
from dnnsep.codegen.kernel import compiled
from dnnsep.codegen.pack import packed
from dnnsep.codegen.plan import plan
from dnnsep.problem import Problem
from dnnsep.weights import Weights


class FusedExecutor(Executor):
    """Runs on torch's threads; the work is cut for as many as torch has when it is prepared."""

    def __init__(self, backend: str, problem: Problem, weights: Weights) -> None:
        super().__init__(backend, problem, ())
        self.plan = plan(problem, this_isa(), torch.get_num_threads())
        self._kernel = compiled(problem, self.plan)
        self._packed = packed(problem, self.plan, weights)
        self._parallel = openmp.parallel()
        self._local = threading.local()
        self.impls = (f"fused:{self.plan.isa.name}",)

    def _run(self, x: Tensor, out: Tensor | None) -> Tensor:
        if out is None:
            out = torch.empty(
                self._output_shape, dtype=self._dtype, memory_format=torch.channels_last
            )
        task = self._task()
        task[0], task[1] = x.data_ptr(), out.data_ptr()
        self._parallel(self._kernel.address, task, self.plan.parts, 0)
        return out

    def _task(self) -> ctypes.Array[ctypes.c_void_p]:
        """This thread's: every caller has scratch memory of its own."""
        found = getattr(self._local, "task", None)
        if found is None:
            size = self._kernel.scratch_bytes + 64
            self._local.scratch = np.zeros(size, np.uint8)
            scratch = self._local.scratch.ctypes.data
            found = self._local.task = (ctypes.c_void_p * 6)(
                None,
                None,
                self._packed.ctypes.data,
                scratch + -scratch % 64,
                openmp.address_of("omp_get_thread_num"),
                openmp.address_of("omp_get_num_threads"),
            )
        return found
