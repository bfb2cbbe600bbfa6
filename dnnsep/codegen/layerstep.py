"""A layer of a convolution network as a step of a program, by the plan that is the fastest here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen import tuner
from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import PLAIN, Extras
from dnnsep.codegen.kernel import Room, Specialization, compiled
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.layer import Layer, layer_of
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.plan import Plan, part_pixels
from dnnsep.codegen.program import Placed, Program, alone
from dnnsep.codegen.reach import Reach, reach_of
from dnnsep.codegen.task import Task
from dnnsep.codegen.tuner import Question
from dnnsep.problem import Problem


@dataclass(frozen=True, eq=False)
class LayerStep:
    """A problem, the plan that it runs by, its weights as a Packing lays them out, and what it
    takes beside its input. Its operands are x and y, and where the extras say so residual and
    scale.

    Raises ValueError where the problem's kernel cannot take the extras.
    """

    problem: Problem
    plan: Plan
    packed: NDArray[np.uint8]
    extras: Extras = PLAIN

    def __post_init__(self) -> None:
        self.extras.check(self.layer)

    @property
    def layer(self) -> Layer:
        """What of the problem does not depend on its input's size."""
        return layer_of(self.problem, self.plan.isa)

    @cached_property
    def special(self) -> Specialization:
        """All that decides the step's kernel."""
        return Specialization.of(self.problem, self.plan, self.extras)

    @cached_property
    def room(self) -> Room:
        """What a part needs of scratch memory."""
        return Room.of(self.problem, self.plan, self.extras)

    @cached_property
    def kernel(self) -> Function:
        return compiled(self.special)

    @cached_property
    def unaligned_kernel(self) -> Function:
        """The kernel for an output that does not start at a cache line: streaming stores need
        whole lines."""
        plan = replace(self.special.plan, streaming=False)
        return compiled(replace(self.special, plan=plan))

    @property
    def parts(self) -> int:
        return self.plan.parts

    @property
    def scratch_bytes(self) -> int:
        return self.room.part

    def reach(self, part: int) -> Reach | None:
        """Returns what a part reads and writes of the operands; None where that is not known."""
        pixels = part_pixels(self.problem, self.plan, part)
        return reach_of(self.layer, self.extras, Extent.of(self.problem), pixels)

    def task(self) -> Task:
        return Task(
            packed=self.packed.ctypes.data,
            tile=self.plan.tile,
            tile_bytes=self.room.tile,
        )

    def kernel_for(self, field: str, address: int) -> Function:
        """Returns the kernel for a field of the task that has an address."""
        unaligned = field == "y" and self.plan.streaming and address % 64
        return self.unaligned_kernel if unaligned else self.kernel

    def alone(self) -> Placed:
        """Returns the step on a program's input and what is given with it, into its output."""
        return alone(self, self.extras.residual, self.extras.scale)


def chosen_step(
    problem: Problem,
    packed: Callable[[Packing], NDArray[np.uint8]],
    threads: int,
    extras: Extras = PLAIN,
    tune: bool = True,
) -> LayerStep:
    """Returns a problem as a step, by the plan that is the fastest on this CPU and so many threads:
    a few are measured when it is asked for first, unless ``tune`` or DNNSEP_TUNE says no.

    ``packed`` returns its weights laid out; who asks for several sizes of a layer's input keeps
    them by the Packing. Raises RuntimeError or ValueError where this CPU has no kernels.
    """
    isa = this_isa()
    layer, packed = layer_of(problem, isa), cache(packed)

    def step(plan: Plan, extras: Extras) -> LayerStep:
        return LayerStep(problem, plan, packed(Packing(layer, plan.vectors)), extras)

    # Slices of wider tensors are measured as tensors of their own.
    plan = tuner.chosen_plan(
        Question(problem, isa, threads, extras.dense),
        lambda plan: Program([step(plan, extras.dense).alone()]),
        tune,
    )
    return step(plan, extras)
