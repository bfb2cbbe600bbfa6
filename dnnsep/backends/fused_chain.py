"""Fused layers that feed each other, in one call. Imports torch: import it in functions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dnnsep.backends.executor import TORCH_DTYPES
from dnnsep.backends.fused_executor import FusedExecutor, Task
from dnnsep.codegen import team
from dnnsep.codegen.chain import chain_function
from dnnsep.codegen.kernel import compiled
from dnnsep.codegen.separable import TASK_FIELDS, Extras
from dnnsep.problem import DTYPE_BYTES, Problem

_ALIGN = 64
_Y = TASK_FIELDS.index("y")

# What a step may read beside the results of earlier ones: the chain's input, what is given with it.
INPUT, GIVEN = -1, -2


@dataclass(frozen=True)
class Step:
    """A layer and where its input, its residual and its scale (see ``Extras``) come from: the
    number of an earlier step, INPUT or GIVEN; None for none."""

    executor: FusedExecutor
    x: int = INPUT
    residual: int | None = None
    scale: int | None = None

    @property
    def reads(self) -> dict[str, int]:
        """By the task's field."""
        found = {"x": self.x, "residual": self.residual, "scale": self.scale}
        return {name: source for name, source in found.items() if source is not None}


class FusedChain:
    """Runs steps in order, without leaving the team of threads; the last one's result is its own.

    What is between them is in memory of the chain's own, taken again as soon as it is not needed
    any more, so that it is still in the caches. May be called from several threads at once.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)
        self._kernels = [
            compiled(
                step.executor.problem,
                step.executor.plan,
                Extras(residual=step.residual is not None, scale=step.scale is not None),
            )
            for step in steps
        ]
        self._threads = max(step.executor.plan.parts for step in steps)
        self._function = chain_function()
        self._parallel = team.parallel()
        self._offsets, self._bytes = _places(steps)
        self._shape = torch.Size(steps[-1].executor.problem.output_shape)
        self._dtype = TORCH_DTYPES[steps[-1].executor.problem.dtype]
        self._idle: list[_Program] = []

    def run(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """The last step's result for x, which fits the first step; ``given`` is GIVEN. Both are
        channels-last."""
        y = torch.empty(self._shape, dtype=self._dtype, memory_format=torch.channels_last)
        try:
            program = self._idle.pop()
        except IndexError:
            program = self._program()
        program.bind(x.data_ptr(), 0 if given is None else given.data_ptr(), y.data_ptr())
        self._parallel(self._function.address, program.fields, self._threads, 0)
        self._idle.append(program)
        return y

    def _program(self) -> _Program:
        scratch = max(kernel.scratch_bytes for kernel in self._kernels)
        memory = np.zeros(self._bytes + scratch + _ALIGN, np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % _ALIGN
        tasks = [step.executor.task(start + self._bytes) for step in self._steps]
        results = [start + offset for offset in self._offsets]
        open_fields: dict[int, list[tuple[Task, int]]] = {INPUT: [], GIVEN: []}
        for number, (step, task) in enumerate(zip(self._steps, tasks, strict=True)):
            if number < len(results):
                task[_Y] = results[number]
            for name, source in step.reads.items():
                field = TASK_FIELDS.index(name)
                if source in open_fields:
                    open_fields[source].append((task, field))
                else:
                    task[field] = results[source]
        return _Program([kernel.address for kernel in self._kernels], tasks, open_fields, memory)


class _Program:
    """Tasks and memory for one call at a time."""

    def __init__(
        self,
        functions: list[int],
        tasks: list[Task],
        open_fields: dict[int, list[tuple[Task, int]]],
        memory: np.ndarray,
    ) -> None:
        self._tasks, self._memory = tasks, memory
        self._of_input, self._of_given = open_fields[INPUT], open_fields[GIVEN]
        pairs = [p for f, task in zip(functions, tasks, strict=True) for p in (f, _address(task))]
        self._pairs = (ctypes.c_void_p * len(pairs))(*pairs)
        barrier = team.address_of("GOMP_barrier")
        self.fields = (ctypes.c_void_p * 3)(_address(self._pairs), len(tasks), barrier)

    def bind(self, x: int, given: int, y: int) -> None:
        self._tasks[-1][_Y] = y
        for task, field in self._of_input:
            task[field] = x
        for task, field in self._of_given:
            task[field] = given


def _address(array: ctypes.Array[ctypes.c_void_p]) -> int:
    return ctypes.addressof(array)


def _places(steps: Sequence[Step]) -> tuple[list[int], int]:
    """Where each step's result but the last one's is, and the bytes of all.

    Each goes to the lowest place that no result still needed then has.
    """
    last_use: dict[int, int] = {}
    for number, step in enumerate(steps):
        last_use.update(dict.fromkeys(step.reads.values(), number))
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
