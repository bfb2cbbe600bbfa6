"""What runs: steps one after the other, each by some threads. A single layer is one step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dnnsep.codegen.phases import Chain, Used, phases
from dnnsep.codegen.shared import Entry
from dnnsep.codegen.step import Step
from dnnsep.codegen.team import Work

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

    Unless it ``waits``, the next step needs nothing of this one and of those before it that do not
    wait either.
    """

    step: Step
    operands: Mapping[str, Place]
    waits: bool = True


def alone(step: Step, residual: bool = False, scale: bool = False) -> Placed:
    """Returns a layer as the only step of a program: on its input and what is given with it, into
    its output."""
    operands = {"x": Place(INPUT), "y": Place(OUTPUT)}
    operands |= {"residual": Place(GIVEN)} if residual else {}
    # A scale's few values may be any: the first ones of what is given, or of the input.
    operands |= {"scale": Place(GIVEN if residual else INPUT)} if scale else {}
    return Placed(step, operands)


class Program:
    """Steps in order, run without a return to Python between them."""

    def __init__(
        self, steps: Sequence[Placed], in_phases: Sequence[Sequence[Chain]] | None = None
    ) -> None:
        """Compiles the kernels of the steps; raises ValueError where one has none. Which of their
        parts may run at the same time is found from their operands where it is not given."""
        self.steps = tuple(steps)
        self.threads = max(placed.step.parts for placed in steps)
        if in_phases is None:
            in_phases = phases([_used(placed) for placed in steps])
        self.phases = in_phases
        self.kernels = [placed.step.kernel for placed in steps]
        self.thread_bytes = _whole(max(placed.step.scratch_bytes for placed in steps))
        self.scratch_bytes = self.threads * self.thread_bytes
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
        self._tasks = [placed.step.task() for placed in program.steps]
        self._fields: dict[int, list[tuple[int, str, int]]] = {}
        for number, placed in enumerate(program.steps):
            for name, place in placed.operands.items():
                fields = self._fields.setdefault(place.buffer, [])
                fields.append((number, name, place.offset))
        self._entries = (Entry * len(self._steps))(
            *(
                Entry(kernel.address, ctypes.addressof(task))
                for kernel, task in zip(program.kernels, self._tasks, strict=True)
            )
        )
        self._bound: dict[int, int] = {}
        first, size = ctypes.addressof(self._entries), ctypes.sizeof(Entry)
        work = [
            [[(first + number * size, part) for number, part in chain] for chain in phase]
            for phase in program.phases
        ]
        self._work = Work(work, program.threads, start, program.thread_bytes)

    def run(self) -> None:
        """Runs the steps on what was bound last."""
        self._work.run()

    def move_scratch(self, start: int) -> None:
        """Sets the address of the scratch memory that it was made without."""
        self._work.move_scratch(start)

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


def _used(placed: Placed) -> Used:
    operands = {name: (place.buffer, place.offset) for name, place in placed.operands.items()}
    return Used(placed.step, operands, placed.waits)


def _whole(size: int) -> int:
    """Returns a size in whole lines of the caches."""
    return -(-size // _ALIGN) * _ALIGN
