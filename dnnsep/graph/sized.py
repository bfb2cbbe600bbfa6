"""A template for one size of the input, as it runs.

All sizes of a model share the memory between kernels.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dnnsep.codegen.arena import Lifetime, offsets
from dnnsep.codegen.phases import Used, last_uses, phases
from dnnsep.codegen.program import Frame, Place, Placed, Program
from dnnsep.codegen.step import Step
from dnnsep.graph.grids import Grid
from dnnsep.graph.network import Buffer, new_memory
from dnnsep.graph.template import Output, Template

_ALIGN = 64
_ARENA = 0


class Memory:
    """Memory between the kernels of a model's calls, whatever their sizes: as much as the largest
    call needed, for each of those that ran at once."""

    def __init__(self) -> None:
        self._idle: list[Tensor] = []

    @torch.inference_mode(False)  # else only inference mode might write into it later
    def take(self, size: int) -> Tensor:
        """Returns memory of at least so many bytes, which nobody else uses."""
        try:
            found = self._idle.pop()
        except IndexError:
            found = torch.empty(0, dtype=torch.uint8)
        return found if len(found) >= size else new_memory(size)

    def give_back(self, memory: Tensor) -> None:
        """Takes memory back for a later call."""
        self._idle.append(memory)


class SizedNetwork:
    """A template's kernels for one size of the input. May be called from several threads at
    once."""

    def __init__(
        self,
        template: Template,
        grids: Sequence[Grid],
        used: Sequence[Used],
        memory: Memory,
    ) -> None:
        """``used`` are the template's kernels for the grids of a size."""
        self._memory, self.grids, self._used = memory, grids, tuple(used)
        in_phases = phases(used)
        places, self._arena_bytes = self._places(template, last_uses(used, in_phases))
        numbers: dict[Buffer, int] = {}

        def place(buffer: Any, offset: int) -> Place:
            if buffer in places:
                return Place(_ARENA, places[buffer] + offset)
            return Place(numbers.setdefault(buffer, len(numbers) + 1), offset)

        self.program = Program(
            [
                Placed(
                    one.step,
                    {name: place(*operand) for name, operand in one.operands.items()},
                    one.waits,
                )
                for one in used
            ],
            in_phases,
        )
        self._inputs = [n for buffer, n in numbers.items() if buffer.kind == "input"]
        self._constants = [
            (n, buffer.tensor.data_ptr())
            for buffer, n in numbers.items()
            if buffer.tensor is not None
        ]
        self._results = [
            (numbers[buffer], _maker(template, buffer, self.grids))
            for buffer in dict.fromkeys(one.buffer for one in template.outputs if one is not None)
        ]
        order = [number for number, _ in self._results]
        self._outputs = [
            None
            if one is None
            else (order.index(numbers[one.buffer]), _view(template, one, self.grids))
            for one in template.outputs
        ]
        self._template = template  # holds the constants
        self._idle: list[Frame] = []

    def with_steps(self, steps: Sequence[Step]) -> SizedNetwork:
        """Returns the network with other kernels that do the same."""
        used = [replace(one, step=step) for one, step in zip(self._used, steps, strict=True)]
        return SizedNetwork(self._template, self.grids, used, self._memory)

    @property
    def steps(self) -> list[Step]:
        """The kernels in order, or cascades of them."""
        return [one.step for one in self._used]

    def _places(
        self, template: Template, lasts: Mapping[Hashable, int]
    ) -> tuple[dict[Buffer, int], int]:
        """Returns where in the memory between kernels each of its buffers starts, and the bytes of
        all of it."""
        firsts: dict[Hashable, int] = {}
        for number, one in enumerate(self._used):
            for buffer, _ in one.operands.values():
                firsts.setdefault(buffer, number)
        own = [b for b in template.held if b.kind == "arena" and b in firsts]
        own.sort(key=firsts.__getitem__)
        lives = [Lifetime(template.held[b].bytes(self.grids), firsts[b], lasts[b]) for b in own]
        starts, size = offsets(lives)
        return dict(zip(own, starts, strict=True)), -(-size // _ALIGN) * _ALIGN

    def run(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Returns the outputs for an input of this size."""
        program = self.program
        memory = self._memory.take(self._arena_bytes + program.scratch_bytes + _ALIGN)
        start = memory.data_ptr() + -memory.data_ptr() % _ALIGN
        try:
            frame = self._idle.pop()
        except IndexError:
            frame = Frame(program, start + self._arena_bytes)
            for number, address in self._constants:
                frame.bind(number, address)
        frame.move_scratch(start + self._arena_bytes)
        frame.bind(_ARENA, start)
        for number in self._inputs:
            frame.bind(number, inputs[0].data_ptr())
        made = []
        for number, make in self._results:
            made.append(make())
            frame.bind(number, made[-1].data_ptr())
        frame.run()
        self._idle.append(frame)
        self._memory.give_back(memory)
        return [None if one is None else one[1](made[one[0]]) for one in self._outputs]


def _maker(template: Template, buffer: Buffer, grids: Sequence[Grid]) -> Callable[[], Tensor]:
    """Returns what makes a result's memory, as the pixels of its grid."""
    held = template.held[buffer]
    size = (grids[held.grid].pixels, held.pitch or held.channels)
    return lambda: torch.empty(size, dtype=held.dtype)


def _view(template: Template, output: Output, grids: Sequence[Grid]) -> Callable[[Tensor], Tensor]:
    """Returns what makes a result of its memory."""
    of, pitch = grids[output.grid], template.held[output.buffer].pitch or output.channels
    if output.dims == 2:
        size: tuple[int, ...] = (of.pixels, output.channels)
        strides: tuple[int, ...] = (pitch, 1)
    else:
        size = (of.images, output.channels, of.height, of.width)
        strides = (of.height * of.width * pitch, 1, of.width * pitch, pitch)
    if output.dims == 2 and pitch == output.channels:
        return lambda made: made
    return lambda made: made.as_strided(size, strides, output.first)
