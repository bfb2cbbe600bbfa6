"""Fused layers one after the other, in one call. Imports torch: import it from inside functions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dnnsep.backends.executor import TORCH_DTYPES
from dnnsep.backends.fused_executor import FusedExecutor, Task
from dnnsep.codegen import openmp
from dnnsep.codegen.chain import chain_function
from dnnsep.codegen.kernel import compiled
from dnnsep.codegen.separable import TASK_FIELDS
from dnnsep.problem import DTYPE_BYTES, Problem

_ALIGN = 64
INPUT, GIVEN = -1, -2
_X, _Y, _RESIDUAL = (TASK_FIELDS.index(name) for name in ("x", "y", "residual"))


@dataclass(frozen=True)
class Step:
    """A layer, and where its residual comes from: the number of an earlier step whose result is
    added to its sums, INPUT for the chain's input, GIVEN for what is given beside that, None for
    none."""

    executor: FusedExecutor
    residual: int | None = None


class FusedChain:
    """Runs steps, each on the result of the one before, without leaving the team of threads.

    What is between them is in memory of the chain's own, taken again as soon as it is not needed
    any more, so that it is still in the caches. May be called from several threads at once.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)
        self._kernels = [
            compiled(s.executor.problem, s.executor.plan, s.residual is not None) for s in steps
        ]
        self._threads = max(step.executor.plan.parts for step in steps)
        self._function = chain_function()
        self._parallel = openmp.parallel()
        self._offsets, self._bytes = _places(steps)
        self._shape = torch.Size(steps[-1].executor.problem.output_shape)
        self._dtype = TORCH_DTYPES[steps[-1].executor.problem.dtype]
        self._idle: list[_Program] = []

    def run(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The last step's result for x, which fits the first step; ``residual`` is GIVEN. Both are
        channels-last."""
        y = torch.empty(self._shape, dtype=self._dtype, memory_format=torch.channels_last)
        try:
            program = self._idle.pop()
        except IndexError:
            program = self._program()
        program.bind(x.data_ptr(), y.data_ptr(), 0 if residual is None else residual.data_ptr())
        self._parallel(self._function.address, program.fields, self._threads, 0)
        self._idle.append(program)
        return y

    def _program(self) -> _Program:
        scratch = max(kernel.scratch_bytes for kernel in self._kernels)
        memory = np.zeros(self._bytes + scratch + _ALIGN, np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % _ALIGN
        tasks = [step.executor.task(start + self._bytes) for step in self._steps]
        results = [start + offset for offset in self._offsets]
        for number, (step, task) in enumerate(zip(self._steps, tasks, strict=True)):
            if number:
                task[_X] = results[number - 1]
            if number < len(results):
                task[_Y] = results[number]
            if step.residual is not None and step.residual >= 0:
                task[_RESIDUAL] = results[step.residual]
        reads_input, reads_given = (
            [task for step, task in zip(self._steps, tasks, strict=True) if step.residual == source]
            for source in (INPUT, GIVEN)
        )
        functions = [kernel.address for kernel in self._kernels]
        return _Program(functions, tasks, reads_input, reads_given, memory)


class _Program:
    """Tasks and memory for one call at a time."""

    def __init__(
        self,
        functions: list[int],
        tasks: list[Task],
        reads_input: list[Task],
        reads_given: list[Task],
        memory: np.ndarray,
    ) -> None:
        self._tasks, self._memory = tasks, memory
        self._reads_input, self._reads_given = reads_input, reads_given
        pairs = [p for f, task in zip(functions, tasks, strict=True) for p in (f, _address(task))]
        self._pairs = (ctypes.c_void_p * len(pairs))(*pairs)
        barrier = openmp.address_of("GOMP_barrier")
        self.fields = (ctypes.c_void_p * 3)(_address(self._pairs), len(tasks), barrier)

    def bind(self, x: int, y: int, residual: int) -> None:
        self._tasks[0][_X] = x
        self._tasks[-1][_Y] = y
        for task in self._reads_input:
            task[_RESIDUAL] = x
        for task in self._reads_given:
            task[_RESIDUAL] = residual


def _address(array: ctypes.Array[ctypes.c_void_p]) -> int:
    return ctypes.addressof(array)


def _places(steps: Sequence[Step]) -> tuple[list[int], int]:
    """Where each step's result but the last one's is, and the bytes of all.

    Each goes to the lowest place that no result still needed then has.
    """
    last_use = {number: number + 1 for number in range(len(steps))}
    for number, step in enumerate(steps):
        if step.residual is not None:
            last_use[step.residual] = number
    taken: dict[int, tuple[int, int]] = {}
    offsets: list[int] = []
    total = 0
    for number, step in enumerate(steps[:-1]):
        # What this step itself reads must stay until it is done.
        taken = {n: place for n, place in taken.items() if last_use[n] >= number}
        size = _result_bytes(step.executor.problem)
        start = 0
        for begin, end in sorted(taken.values()):
            if begin - start >= size:
                break
            start = max(start, end)
        taken[number] = (start, start + size)
        offsets.append(start)
        total = max(total, start + size)
    return offsets, total


def _result_bytes(problem: Problem) -> int:
    size = problem.out_pixels * problem.out_channels * DTYPE_BYTES[problem.dtype]
    return -(-size // _ALIGN) * _ALIGN
