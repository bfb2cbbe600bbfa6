"""What runs: steps one after the other by one team of threads. A single layer is one step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen import team, tuner
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.kernel import Room, Specialization, compiled
from dnnsep.codegen.lang.emit import I64, POINTER, VOID, Code
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.sources import Sources
from dnnsep.codegen.task import Task, load_field
from dnnsep.codegen.tuner import Question
from dnnsep.dtypes import DTYPES
from dnnsep.problem import Problem

_ALIGN = 64

# What a step may read beside the results of earlier ones: the program's input, and what is given
# with it.
INPUT, GIVEN = -1, -2
FROM_INPUT = Sources(INPUT)


@dataclass(frozen=True, eq=False)
class Step:
    """A problem, the plan that it runs by, its weights as a Packing lays them out, and the numbers
    of the earlier steps (or INPUT or GIVEN) that it reads."""

    problem: Problem
    plan: Plan
    packed: NDArray[np.uint8]
    sources: Sources[int] = FROM_INPUT

    @property
    def extras(self) -> Extras:
        return Extras(self.sources.residual is not None, self.sources.scale is not None)

    @property
    def special(self) -> Specialization:
        """All that decides the step's kernel."""
        return Specialization.of(self.problem, self.plan, self.extras)

    @property
    def room(self) -> Room:
        """What each part needs of scratch memory."""
        return Room.of(self.problem, self.plan, self.extras)


def chosen_step(
    problem: Problem,
    packed: Callable[[Packing], NDArray[np.uint8]],
    threads: int,
    sources: Sources[int] = FROM_INPUT,
    tune: bool = True,
) -> Step:
    """Returns a problem as a step, by the plan that is the fastest on this CPU and so many threads:
    a few are measured when it is asked for first, unless ``tune`` or DNNSEP_TUNE says no.

    ``packed`` returns its weights laid out; who asks for several sizes of a layer's input keeps
    them by the Packing. Raises RuntimeError or ValueError where this CPU has no kernels.
    """
    isa = this_isa()
    layer, packed = layer_of(problem, isa), cache(packed)

    def step(plan: Plan, sources: Sources[int]) -> Step:
        return Step(problem, plan, packed(Packing(layer, plan.vectors)), sources)

    # A residual is measured as memory of its own; a scale's few values may be any of the input's.
    residual, scale = sources.residual is not None, sources.scale is not None
    measured = Sources(INPUT, GIVEN if residual else None, INPUT if scale else None)
    plan = tuner.chosen_plan(
        Question(problem, isa, threads, Extras(residual, scale)),
        lambda plan: Program([step(plan, measured)]),
        tune,
    )
    return step(plan, sources)


class Program:
    """Runs steps in order, without leaving the team of threads; the last one's result is its own.

    What is between them is in memory of the program's own, taken again as soon as it is not needed
    any more, so that it is still in the caches. May be called from several threads at once.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        """Raises ValueError where a step's result is not read by a later one."""
        self.steps = tuple(steps)
        self.threads = max(step.plan.parts for step in steps)
        self._kernels = [compiled(step.special) for step in steps]
        self._function = _run_function()
        self._parallel = team.parallel()
        self._offsets, self._bytes = _offsets(steps)
        self._idle: list[_Frame] = []

    def run(self, x: int, given: int, y: int) -> None:
        """Runs on the input at address ``x`` and what is given at ``given`` (0 for nothing) into
        the output at ``y``; all of them channels-last."""
        try:
            frame = self._idle.pop()
        except IndexError:
            frame = self._new_frame()
        frame.bind(x, given, y)
        self._parallel(self._function.address, frame.address, self.threads, 0)
        self._idle.append(frame)

    def bound(self, x: int, y: int) -> Callable[[], None]:
        """Returns a call, to be made from one thread at a time, that runs on these addresses."""
        frame = self._new_frame()
        frame.bind(x, 0, y)
        run, function = self._parallel, self._function.address
        argument, threads = frame.address, self.threads

        # Code, weights and memory are known by their addresses only: the call keeps them.
        def call(_kept: object = (self, frame)) -> None:
            run(function, argument, threads, 0)

        return call

    def _new_frame(self) -> _Frame:
        return _Frame(self.steps, self._kernels, self._offsets, self._bytes)


class _Frame:
    """The tasks and the memory of a program, for one call at a time."""

    def __init__(
        self,
        steps: Sequence[Step],
        kernels: Sequence[Function],
        offsets: Sequence[int],
        size: int,
    ) -> None:
        scratch = max(step.plan.parts * step.room.part for step in steps)
        self._memory = np.zeros(size + scratch + _ALIGN, np.uint8)
        start = self._memory.ctypes.data + -self._memory.ctypes.data % _ALIGN
        number, count = (
            team.address_of(f"omp_get_{name}") for name in ("thread_num", "num_threads")
        )
        self._tasks = [
            Task(
                packed=step.packed.ctypes.data,
                scratch=start + size,
                thread_number=number,
                thread_count=count,
                tile=step.plan.tile,
                tile_bytes=step.room.tile,
                part_bytes=step.room.part,
            )
            for step in steps
        ]
        self._open: dict[int, list[tuple[Task, str]]] = {INPUT: [], GIVEN: []}
        results = [start + offset for offset in offsets]
        for task, result in zip(self._tasks, results, strict=False):  # the last one's is y
            task.y = result
        for step, task in zip(steps, self._tasks, strict=True):
            for name, source in step.sources.items():
                if source in self._open:
                    self._open[source].append((task, name))
                else:
                    setattr(task, name, results[source])
        self._entries = (_Entry * len(steps))(
            *(
                _Entry(kernel.address, ctypes.addressof(task))
                for kernel, task in zip(kernels, self._tasks, strict=True)
            )
        )
        barrier = team.address_of("GOMP_barrier")
        self._list = _List(ctypes.addressof(self._entries), len(steps), barrier)
        self.address = ctypes.addressof(self._list)
        self._last, self._kernel = steps[-1], kernels[-1]
        self._unaligned: Function | None = None

    def bind(self, x: int, given: int, y: int) -> None:
        """Enters the addresses that a call brings."""
        self._tasks[-1].y = y
        for task, name in self._open[INPUT]:
            setattr(task, name, x)
        for task, name in self._open[GIVEN]:
            setattr(task, name, given)
        if self._last.plan.streaming:  # such stores need whole lines
            kernel = self._kernel if y % _ALIGN == 0 else self._unaligned_kernel()
            self._entries[len(self._tasks) - 1].function = kernel.address

    def _unaligned_kernel(self) -> Function:
        if self._unaligned is None:
            special = self._last.special
            plan = replace(special.plan, streaming=False)
            self._unaligned = compiled(replace(special, plan=plan))
        return self._unaligned


class _Entry(ctypes.Structure):
    """A step as the generated code reads it: the addresses of a kernel and of its Task."""

    _fields_ = (("function", ctypes.c_void_p), ("task", ctypes.c_void_p))


class _List(ctypes.Structure):
    """A program as the generated code reads it: the address of its steps, their number, and the
    address of OpenMP's barrier."""

    _fields_ = (
        ("steps", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("barrier", ctypes.c_void_p),
    )


@cache
def _run_function() -> Function:
    """Returns ``run(list)``, which a team of threads calls at once: each step by all of them, and
    the next only when all are done."""
    return Function(machine_code(_emit()), "run", [ctypes.c_void_p])


def _emit() -> ir.Module:
    module = ir.Module()
    module.triple = ""
    code = Code(module, "run", [POINTER])
    b, (steps,) = code.builder, code.arguments
    entries = load_field(code, _List, steps, "steps")
    barrier = load_field(code, _List, steps, "barrier")
    last = b.sub(load_field(code, _List, steps, "count", I64), I64(1))

    def one(step: ir.Value) -> None:
        entry = code.at(entries, b.mul(step, I64(2)), POINTER)
        function, task = (load_field(code, _Entry, entry, name) for name in ("function", "task"))
        code.call_address(function, [task], VOID)

    def one_of_several(step: ir.Value) -> None:
        one(step)
        code.call_address(barrier, [], VOID)

    code.for_each(I64(0), last, one_of_several)
    one(last)
    code.end()
    return module


def _offsets(steps: Sequence[Step]) -> tuple[list[int], int]:
    """Returns where each step's result but the last one's is, and the bytes of all.

    Each goes to the lowest place that no result still needed then has.
    """
    last_use: dict[int, int] = {}
    for number, step in enumerate(steps):
        last_use.update({source: number for _, source in step.sources.items()})
    for number in range(len(steps) - 1):
        if number not in last_use:
            raise ValueError(f"step {number}: no later step reads its result")
    taken: dict[int, tuple[int, int]] = {}
    offsets: list[int] = []
    total = 0
    for number, step in enumerate(steps[:-1]):
        # What this step itself reads must stay until it is done.
        taken = {n: place for n, place in taken.items() if last_use[n] >= number}
        size = _result_bytes(step.problem)
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
    size = problem.out_pixels * problem.out_channels * DTYPES[problem.dtype].bytes
    return -(-size // _ALIGN) * _ALIGN
