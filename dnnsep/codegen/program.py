"""What runs: steps one after the other by one team of threads. A single layer is one step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from llvmlite import ir

from dnnsep.codegen import team
from dnnsep.codegen.lang.emit import I64, POINTER, VOID, Code
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.step import Step
from dnnsep.codegen.task import load_field

_ALIGN = 64

# The buffers of a program of a single layer: its input, what is given with it, its result.
INPUT, GIVEN, OUTPUT = -1, -2, -3


@dataclass(frozen=True)
class Place:
    """Where an operand of a step is: so many bytes from the start of a buffer, which has a
    number."""

    buffer: int
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Placed:
    """A step and where each operand of it is, by the name of the task's field.

    ``waits`` says whether later steps may read what this one and those before it wrote: where they
    do not, no thread waits for the others after it.
    """

    step: Step
    operands: Mapping[str, Place]
    waits: bool = True


class Program:
    """Steps in order, run without leaving the team of threads."""

    def __init__(self, steps: Sequence[Placed]) -> None:
        """Compiles the kernels of the steps; raises ValueError where one has none."""
        self.steps = tuple(steps)
        self.threads = max(placed.step.parts for placed in steps)
        self.kernels = [placed.step.kernel for placed in steps]
        self.scratch_bytes = max(placed.step.scratch_bytes for placed in steps)
        self._idle: list[Frame] = []

    def run(self, addresses: Mapping[int, int]) -> None:
        """Runs on buffers at these addresses. May be called from several threads at once."""
        try:
            frame = self._idle.pop()
        except IndexError:
            frame = Frame(self)
        for buffer, address in addresses.items():
            frame.bind(buffer, address)
        frame.run()
        self._idle.append(frame)

    def bound(self, addresses: Mapping[int, int]) -> Callable[[], None]:
        """Returns a call, to be made from one thread at a time, that runs on these buffers."""
        frame = Frame(self)
        for buffer, address in addresses.items():
            frame.bind(buffer, address)
        return frame.run


class Frame:
    """The tasks and the scratch memory of a program, for one call at a time.

    ``scratch`` is the address of memory for it that a whole network shares; else it has its own.
    """

    def __init__(self, program: Program, scratch: int = 0) -> None:
        self._memory = np.zeros(0 if scratch else program.scratch_bytes + _ALIGN, np.uint8)
        start = scratch or self._memory.ctypes.data + -self._memory.ctypes.data % _ALIGN
        self._steps = program.steps
        self._tasks = [placed.step.task(start) for placed in program.steps]
        self._fields: dict[int, list[tuple[int, str, int]]] = {}
        for number, placed in enumerate(program.steps):
            for name, place in placed.operands.items():
                fields = self._fields.setdefault(place.buffer, [])
                fields.append((number, name, place.offset))
        self._entries = (_Entry * len(self._steps))(
            *(
                _Entry(kernel.address, ctypes.addressof(task), placed.waits)
                for kernel, task, placed in zip(
                    program.kernels, self._tasks, self._steps, strict=True
                )
            )
        )
        barrier = team.address_of("GOMP_barrier")
        self._list = _List(ctypes.addressof(self._entries), len(self._steps), barrier)
        self._bound: dict[int, int] = {}
        self._parallel, self._function = team.parallel(), _run_function()
        self._call = (self._function.address, ctypes.addressof(self._list))
        self._threads = program.threads

    def bind(self, buffer: int, address: int) -> None:
        """Enters the address of a buffer wherever a step reads or writes it."""
        if self._bound.get(buffer) == address:
            return
        self._bound[buffer] = address
        for number, name, offset in self._fields.get(buffer, ()):
            setattr(self._tasks[number], name, address + offset)
            kernel_for = getattr(self._steps[number].step, "kernel_for", None)
            if kernel_for is not None:
                self._entries[number].function = kernel_for(name, address + offset).address

    def run(self) -> None:
        """Runs the steps on what was bound last."""
        self._parallel(*self._call, team.size(self._threads), 0)


class _Entry(ctypes.Structure):
    """A step as the generated code reads it: the addresses of a kernel and of its task, and whether
    all threads wait for each other after it."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("task", ctypes.c_void_p),
        ("waits", ctypes.c_int64),
    )


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
    the next only when all are done, where the step says so."""
    return Function(machine_code(_emit()), "run", [ctypes.c_void_p])


def _emit() -> ir.Module:
    module = ir.Module()
    module.triple = ""
    code = Code(module, "run", [POINTER])
    b, (steps,) = code.builder, code.arguments
    entries = load_field(code, _List, steps, "steps")
    barrier = load_field(code, _List, steps, "barrier")
    last = b.sub(load_field(code, _List, steps, "count", I64), I64(1))

    def one(step: ir.Value) -> ir.Value:
        entry = code.at(entries, b.mul(step, I64(3)), POINTER)
        function, task = (load_field(code, _Entry, entry, name) for name in ("function", "task"))
        code.call_address(function, [task], VOID)
        return load_field(code, _Entry, entry, "waits", I64)

    def one_of_several(step: ir.Value) -> None:
        waits = b.icmp_signed("!=", one(step), I64(0))
        code.when(waits, lambda: code.call_address(barrier, [], VOID))

    code.for_each(I64(0), last, one_of_several)
    one(last)
    code.end()
    return module
