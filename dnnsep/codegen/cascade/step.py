"""A cascade as a step of a program."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from dnnsep.codegen.cascade.driver import (
    FROM,
    MOST_OPERANDS,
    OWN,
    Call,
    CascadeTask,
    Setting,
    driver,
)
from dnnsep.codegen.cascade.links import AnyLink, KernelCall, Member, ReductionLink, link_of
from dnnsep.codegen.cascade.schedule import Move, Run, Schedule, schedule
from dnnsep.codegen.lang.jit import Function

Operand = TypeVar("Operand")


@dataclass(frozen=True)
class Cut:
    """How a cascade is cut up: parts for threads, bands of so many pixels, and the bytes that a
    rolling buffer may have."""

    parts: int
    band: int
    room: int


class CascadeStep:
    """Steps that each thread runs band by band. Its operands are y, which the last member writes,
    and ``outer``: the member and its operand that each of x0, x1, … is."""

    def __init__(self, members: Sequence[Member], cut: Cut) -> None:
        """``members`` are in order; what one writes only those after it read. Raises ValueError
        where they cannot be a cascade."""
        self.members = tuple(members)
        self.links = tuple(link_of(member) for member in members)
        self.cut = cut
        self.outer = [
            (number, operand)
            for number, link in enumerate(self.links)
            for operand in link.operands
            if operand not in link.reads
        ]
        if len(self.outer) > MOST_OPERANDS:
            raise ValueError(f"a cascade has up to {MOST_OPERANDS} operands")
        for number, link in enumerate(self.links):
            for operand, source in link.reads.items():
                if not source < number:
                    raise ValueError("each member reads what others wrote before it")
                _check(self.links[source], link, operand)

    def operands_of(self, given: Sequence[Mapping[str, Operand]]) -> dict[str, Operand]:
        """Returns the cascade's operands, of those of its members by their names."""
        found = {f"x{at}": given[of][name] for at, (of, name) in enumerate(self.outer)}
        return {**found, "y": given[-1]["y"]}

    @property
    def by_image(self) -> bool:
        """Whether all pixels of an image go into each pixel of the last member's output."""
        return any(isinstance(link, ReductionLink) for link in self.links)

    @cached_property
    def bands(self) -> list[int]:
        """How many pieces of each member are made at once, at most: a band of the last one, and of
        those that are reduced over all pixels of an image; of others what these need."""
        reduced = {
            source
            for link in self.links
            if isinstance(link, ReductionLink)
            for source in link.reads.values()
        }
        last = len(self.links) - 1
        bands = []
        for number, link in enumerate(self.links):
            pieces = band = len(link.starts) - 1
            if number in reduced or (number == last and not self.by_image):
                band = max(1, pieces * self.cut.band // link.out.pixels)
            elif number == last:
                band = max(1, pieces // self.images)
            bands.append(band)
        return bands

    @property
    def images(self) -> int:
        """Of a cascade with a reduction the number of images; else 1."""
        return next((link.step.images for link in self.links if isinstance(link, ReductionLink)), 1)

    @cached_property
    def schedule(self) -> Schedule:
        """What each part calls. Raises ValueError where there is none."""
        return schedule(self.links, self.cut.parts, self.bands, self.cut.room)

    @property
    def kernel(self) -> Function:
        for link in self.links:
            assert link.kernel.address
        return driver()

    @property
    def parts(self) -> int:
        return self.cut.parts

    @property
    def scratch_bytes(self) -> int:
        return self.schedule.bytes + max(link.step.scratch_bytes for link in self.links)

    def task(self) -> CascadeTask:
        """Returns a new task; it holds the tasks of its calls."""
        calls: list[Call] = []
        held: list[ctypes.Structure | ctypes.Array[Setting]] = []
        ends = [0]
        for part in self.schedule.parts:
            for made in part:
                if isinstance(made, Move):
                    calls.append(Call(part=made.bytes, source=made.source, target=made.target))
                    continue
                link = self.links[made.link]
                for call in link.calls(made.first, made.end):
                    settings = (Setting * (len(link.operands) + 1))(*self._settings(made, call))
                    held += [call.task, settings]
                    calls.append(_called(link, call, settings))
            ends.append(len(calls))
        made_calls = (Call * len(calls))(*calls)
        made_ends = (ctypes.c_int64 * len(ends))(*ends)
        task = CascadeTask(
            calls=ctypes.addressof(made_calls),
            ends=ctypes.addressof(made_ends),
            bytes=self.schedule.bytes,
        )
        task.held = (made_calls, made_ends, held)
        return task

    def _settings(self, run: Run, call: KernelCall) -> Iterator[Setting]:
        for operand in ("y", *self.links[run.link].operands):
            place = run.places.get(operand)
            base = OWN
            if place is None:
                name = "y" if operand == "y" else f"x{self.outer.index((run.link, operand))}"
                place, base = 0, FROM[name]
            yield Setting(
                field=ctypes.addressof(call.task) + getattr(type(call.task), operand).offset,
                base=base,
                offset=place + call.offsets.get(operand, 0),
            )


def _called(link: AnyLink, call: KernelCall, settings: ctypes.Array[Setting]) -> Call:
    return Call(
        kernel=link.kernel.address,
        task=ctypes.addressof(call.task),
        part=call.part,
        settings=ctypes.addressof(settings),
        count=len(settings),
    )


def _check(source: AnyLink, link: AnyLink, operand: str) -> None:
    """Raises ValueError where what a member writes is not what another one reads in a rolling
    buffer."""
    if operand not in link.operands:
        raise ValueError(f"{operand}: is no operand of the member")
    if not source.is_dense or link.gaps.get(operand):
        raise ValueError("pitch: what is between the members of a cascade is dense")
    written, read = source.out, link.operands[operand]
    if written != read:
        raise ValueError(f"{written} is written and {read} read")
