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

# A chain has so many parts at most, of as many steps: what it uses stays in memory, and in the
# caches, until all of its phase is done.
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
    """What a part reads and writes."""

    reads: _Bytes = field(default_factory=list)
    writes: _Bytes = field(default_factory=list)

    def meets(self, other: _Touched) -> bool:
        """Whether the order of the two matters."""
        return (
            _overlap(self.writes, other.reads)
            or _overlap(self.reads, other.writes)
            or _overlap(self.writes, other.writes)
        )


def phases(steps: Sequence[Used]) -> list[list[Chain]]:
    """Returns the chains of each phase of steps in order."""
    found: list[list[Chain]] = []
    is_free = False  # whether the next step needs nothing of the last phase
    for number, used in enumerate(steps):
        chains = [[(number, part)] for part in range(used.step.parts)]
        before = None if is_free or not found else _followed(steps, found[-1], used)
        if is_free:
            found[-1] += chains
        elif before is not None:
            for part, at in enumerate(before):
                found[-1][at] += chains[part]
        else:
            found.append(chains)
        is_free = not used.waits and before is None
    return found


def last_uses(steps: Sequence[Used], phases: Sequence[Sequence[Chain]]) -> dict[Hashable, int]:
    """Returns for each buffer of steps in phases the number of the last step that may run while
    another one uses it.

    Memory that is taken again before that would have parts wait which could else be chained."""
    lasts: dict[Hashable, int] = {}
    for phase in phases:
        numbers = {number for chain in phase for number, _ in chain}
        for number in numbers:
            for buffer, _ in steps[number].operands.values():
                lasts[buffer] = max(numbers)
    return lasts


def _followed(steps: Sequence[Used], phase: Sequence[Chain], used: Used) -> list[int] | None:
    """Returns which of the last phase's chains each part of a step may follow, another one each;
    None if a part has to wait for several of them, or if there is none for it."""
    count = used.step.parts
    # For a size of the input that is new this is on the way of its first call, so what can not be
    # chained, or gains nothing, is seen without a look at bytes.
    if count == 1 or len(phase) != count or max(map(len, phase)) == _LONGEST:
        return None
    numbers = {chain[0][0] for chain in phase}
    if len(numbers) > 1:  # steps beside each other
        return None
    last = steps[numbers.pop()]
    first, second = _touched(used, 0), _touched(last, 1)
    if first is None or second is None or first.meets(second):
        return None
    chains, parts = ([_touched(of, part) for part in range(count)] for of in (last, used))
    order: list[int] = []
    for part in parts:
        met = [at for at, chain in enumerate(chains) if part and chain and chain.meets(part)]
        if len(met) != 1:
            return None
        order += met
    return order if len(set(order)) == count else None


def _touched(used: Used, part: int) -> _Touched | None:
    """Returns what a part of a step touches; None where its step does not say."""
    reach = getattr(used.step, "reach", None)
    spans = reach(part) if reach is not None else None
    if spans is None:
        return None
    touched = _Touched()
    for name, span in spans.items():
        buffer, offset = used.operands[name]
        place = (buffer, range(offset + span.start, offset + span.stop))
        (touched.writes if name == "y" else touched.reads).append(place)
    return touched


def _overlap(one: _Bytes, other: _Bytes) -> bool:
    return any(
        buffer == same and a.start < b.stop and b.start < a.stop
        for buffer, a in one
        for same, b in other
    )
