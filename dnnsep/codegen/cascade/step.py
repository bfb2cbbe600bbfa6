"""A cascade as a step of a program."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from dnnsep.codegen.cascade.driver import OWN, RESIDUAL, Call, CascadeTask, X, Y, driver
from dnnsep.codegen.cascade.schedule import Link, Move, Run, Schedule, schedule
from dnnsep.codegen.extent import Extent
from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.plan import range_part
from dnnsep.codegen.weigh import layer_for


@dataclass(frozen=True)
class Cut:
    """How a cascade is cut up: parts for threads, bands of so many pieces of the last layer, and
    the bytes that a rolling buffer may have."""

    parts: int
    band: int
    room: int


class CascadeStep:
    """Layers that each thread runs band by band. Its operands are x and y, and where the last layer
    takes one residual."""

    def __init__(self, layers: Sequence[LayerStep], cut: Cut) -> None:
        """``layers`` are in order; what one writes is all that the next one reads. Raises
        ValueError where they cannot be a cascade."""
        for layer, following in pairwise(layers):
            _check(layer, following)
        if any(layer.extras.scale for layer in layers):
            raise ValueError("scale: a cascade takes none")
        self.layers = tuple(replace(layer, plan=layer.plan.by_ranges) for layer in layers)
        self.cut = cut

    @cached_property
    def schedule(self) -> Schedule:
        """What each part calls."""
        links = [
            Link(step.problem, layer_for(step.problem, step.plan), step.plan)
            for step in self.layers
        ]
        return schedule(links, self.cut.parts, self.cut.band, self.cut.room)

    @property
    def kernel(self) -> Function:
        for layer in self.layers:
            assert layer.kernel.address
        return driver()

    @property
    def parts(self) -> int:
        return self.cut.parts

    @property
    def scratch_bytes(self) -> int:
        return self.schedule.bytes + max(layer.scratch_bytes for layer in self.layers)

    def task(self) -> CascadeTask:
        """Returns a new task; it holds the tasks of its calls."""
        calls: list[Call] = []
        tasks: list[ctypes.Structure] = []
        ends = [0]
        for part in self.schedule.parts:
            for made in part:
                if isinstance(made, Move):
                    calls.append(_move(made))
                else:
                    tasks.append(self.layers[made.link].task())
                    calls.append(self._call(made, tasks[-1]))
            ends.append(len(calls))
        made_calls = (Call * len(calls))(*calls)
        made_ends = (ctypes.c_int64 * len(ends))(*ends)
        task = CascadeTask(
            calls=ctypes.addressof(made_calls),
            ends=ctypes.addressof(made_ends),
            bytes=self.schedule.bytes,
        )
        task.held = (made_calls, made_ends, tasks)
        return task

    def _call(self, run: Run, task: ctypes.Structure) -> Call:
        return Call(
            kernel=self.layers[run.link].kernel.address,
            task=ctypes.addressof(task),
            part=range_part(run.first, run.end),
            x_from=X if run.x is None else OWN,
            y_from=Y if run.y is None else OWN,
            residual_from=RESIDUAL,
            x=run.x or 0,
            y=run.y or 0,
        )


def _check(layer: LayerStep, following: LayerStep) -> None:
    """Raises ValueError where a layer's output cannot lie in a rolling buffer for the next one."""
    if layer.extras.residual:
        raise ValueError("residual: only the last layer of a cascade takes one")
    if layer.extras.y_pitch or following.extras.x_pitch:
        raise ValueError("pitch: what is between the layers of a cascade is dense")
    one, other = layer.problem, following.problem
    if "mean" in (one.kind, other.kind):
        raise ValueError("a mean is no part of a cascade")
    written, read = one.precision.destination, other.precision.source
    if written != read:
        raise ValueError(f"{written.name} is written and {read.name} read")
    if one.output_shape == other.input_shape:
        return
    # A matrix is the same in memory as images of its rows.
    is_same = one.out_pixels == Extent.of(other).pixels and one.out_channels == other.in_channels
    if not is_same or not following.layer.window.trivial:
        raise ValueError(f"{one.output_shape} is written and {other.input_shape} read")


def _move(move: Move) -> Call:
    return Call(
        part=move.bytes, x_from=OWN, y_from=OWN, residual_from=X, x=move.source, y=move.target
    )
