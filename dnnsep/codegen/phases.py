"""What of a program's steps may run at the same time: phases, and chains of parts in them.

A phase begins when all of the one before it is done. Where each part of a step needs of the step
before it just what one of its parts wrote, as a pointwise layer on the same pixels does, and
overwrites nothing that others read, no thread has to wait between the two: those parts are a
*chain*, that one thread does in order.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from dnnsep.codegen.step import Step

# The numbers of a step and of a part of it.
Chain = list[tuple[int, int]]

# A chain has so many parts at most: what it uses stays in memory, and in the caches, until all of
# its phase is done.
_LONGEST = 2


@dataclass(frozen=True)
class Used:
    """A step, and of each operand the buffer that it is in and how many bytes from its start on.

    Unless it ``waits``, the next step needs nothing of this one and of those before it that do not
    wait either.
    """

    step: Step
    operands: Mapping[str, tuple[Hashable, int]]
    waits: bool = True


_Bytes = list[tuple[Hashable, range]]


@dataclass
class _Touched:
    """What a chain, or a part, reads and writes."""

    reads: _Bytes = field(default_factory=list)
    writes: _Bytes = field(default_factory=list)

    def meets(self, other: _Touched) -> bool:
        """Whether the order of the two matters."""
        return (
            _overlap(self.writes, other.reads)
            or _overlap(self.reads, other.writes)
            or _overlap(self.writes, other.writes)
        )

    def add(self, other: _Touched) -> None:
        self.reads += other.reads
        self.writes += other.writes


def phases(steps: Sequence[Used]) -> list[list[Chain]]:
    """Returns the chains of each phase of steps in order."""
    found: list[list[Chain]] = []
    touched: list[_Touched] = []  # by the chains of the last phase; none where that is not known
    is_free = False  # whether the next step needs nothing of the last phase
    for number, used in enumerate(steps):
        parts = _parts(used)
        chains = [[(number, part)] for part in range(used.step.parts)]
        is_short = bool(found) and max(map(len, found[-1])) < _LONGEST
        before = _followed(touched, parts) if is_short else None
        if is_free:
            found[-1] += chains
            touched = []
        elif before is not None:
            for part, at in enumerate(before):
                found[-1][at] += chains[part]
                touched[at].add(parts[part])
        else:
            found.append(chains)
            touched = parts
        is_free = not used.waits and before is None
    return found


def last_uses(steps: Sequence[Used]) -> dict[Hashable, int]:
    """Returns for each buffer the number of the last step that may run while another one uses it.

    Memory that is taken again before that would have parts wait which could else be chained."""
    lasts: dict[Hashable, int] = {}
    for phase in phases(steps):
        numbers = {number for chain in phase for number, _ in chain}
        for number in numbers:
            for buffer, _ in steps[number].operands.values():
                lasts[buffer] = max(numbers)
    return lasts


def _followed(chains: Sequence[_Touched], parts: Sequence[_Touched]) -> list[int] | None:
    """Returns which of the chains each part may follow, another one each; None if a part has to
    wait for several of them, or if there is none for it."""
    met = [[at for at, chain in enumerate(chains) if chain.meets(part)] for part in parts]
    if not met or any(len(of) != 1 for of in met):
        return None
    order = [at for (at,) in met]
    return order if sorted(order) == list(range(len(chains))) else None


def _parts(used: Used) -> list[_Touched]:
    """Returns what each part of a step touches; nothing where its step does not say."""
    reach = getattr(used.step, "reach", None)
    if reach is None:
        return []
    parts = []
    for number in range(used.step.parts):
        spans = reach(number)
        if spans is None:
            return []
        touched = _Touched()
        for name, span in spans.items():
            buffer, offset = used.operands[name]
            place = (buffer, range(offset + span.start, offset + span.stop))
            (touched.writes if name == "y" else touched.reads).append(place)
        parts.append(touched)
    return parts


def _overlap(one: _Bytes, other: _Bytes) -> bool:
    return any(
        buffer == same and a.start < b.stop and b.start < a.stop
        for buffer, a in one
        for same, b in other
    )
