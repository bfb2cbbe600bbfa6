"""Kernels whose sizes are left open as cascades (codegen/cascade).

They are measured at the size that the network was made for. A cascade saves the traffic of what is
between its members, so what paid there pays where that is about as much or more; where it is less,
or where threads would have to share an image's pixels, the kernels run one after the other.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.links import Member
from dnnsep.codegen.cascade.step import CascadeStep, Cut
from dnnsep.codegen.step import Step
from dnnsep.graph import cascades
from dnnsep.graph.network import Action, Native

# So much of what was between members where they were measured is about as much.
_ENOUGH = 0.75


@dataclass(frozen=True, eq=False)
class Joined:
    """Kernels [``first``, ``end``) of a template as a cascade: its ``members`` at the size that it
    was measured at, the bytes ``between`` them there, and how it is cut up: ``rows`` of the
    output's rows in a band, and the bytes that a rolling buffer may have."""

    first: int
    end: int
    members: Sequence[Member]
    between: int
    rows: int
    room: int

    def at(self, steps: Sequence[Step], threads: int) -> CascadeStep | None:
        """Returns the cascade of a template's kernels at another size; None where it is not known
        to be faster there than they are one after the other."""
        own = steps[self.first : self.end]
        members = [
            Member(step, member.reads) for step, member in zip(own, self.members, strict=True)
        ]
        try:
            made = choose.cascade(members, Cut(1, 1, 0))
            if _between(made) < _ENOUGH * self.between:
                return None
            parts = min(threads, len(made.links[-1].starts) - 1)
            band = max(1, self.rows * choose.row_pixels(made.links))
            made = CascadeStep(made.members, Cut(parts, band, self.room))
            assert made.schedule
        except ValueError:
            return None
        return None if made.by_image and made.images < threads else made


def _between(made: CascadeStep) -> int:
    """Returns how many bytes members write for each other."""
    return sum(link.out.bytes for link in made.links[:-1])


def measured(
    steps: Sequence[Step],
    actions: Sequence[Action],
    outputs: Sequence[Any],
    inputs: Sequence[Tensor],
    taken: Sequence[cascades.Candidate],
    threads: int,
    tune: bool,
) -> list[Joined]:
    """Returns those cascades that were ``taken`` of actions which are faster, too, with ``steps``
    in the actions' places: a template's kernels, at the size of these inputs."""
    opened: list[Action] = []
    for action, step in zip(actions, steps, strict=True):
        assert isinstance(action, Native)  # a template has kernels only
        opened.append(replace(action, step=step))
    found = []
    for one in cascades.confirmed(opened, outputs, inputs, taken, threads, tune):
        cut = choose.verdict_on(one.members, threads, tune=False).cut
        assert cut is not None
        made = choose.cascade(one.members, cut)
        rows = max(1, cut.band // choose.row_pixels(made.links))
        found.append(Joined(one.first, one.end, one.members, _between(made), rows, cut.room))
    return found
