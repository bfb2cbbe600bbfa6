"""Finds steps in a network that run as cascades (codegen/cascade).

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.links import Member
from dnnsep.codegen.cascade.step import Cut
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.graph import layout
from dnnsep.graph.network import Action, Buffer, Native, Value, values_of

# A cascade has so many steps at most: a block with squeeze and excitation has six.
_MOST = 6


@dataclass(frozen=True)
class Candidate:
    """Actions [``first``, ``end``) that could be a cascade, as its members, the bytes that they
    write for each other, and why it is not worth measuring; empty where it is."""

    first: int
    end: int
    members: list[Member]
    between_bytes: int
    why_not: str


def candidates(
    actions: Sequence[Action], outputs: Sequence[Any], threads: int
) -> Iterator[Candidate]:
    """Yields what could be cascades, by their ends: pairs of steps, and longer ones where not all
    of them are layers and measuring is worth it."""
    uses = Counter(value.buffer for action in actions for value in values_of(action))
    uses.update(value.buffer for value in outputs if isinstance(value, Value))
    for end in range(2, len(actions) + 1):
        for first in range(end - 2, max(end - _MOST, 0) - 1, -1):
            steps = [action for action in actions[first:end] if isinstance(action, Native)]
            if len(steps) < end - first or not steps[0].waits:
                break
            is_pair = len(steps) == 2
            if not is_pair and all(isinstance(action.step, LayerStep) for action in steps):
                continue
            members, why_not = _members(steps, uses)
            if members and not why_not:
                why_not = choose.why_not_measured(members, threads)
            if members and (is_pair or not why_not):
                between = [action.operands["y"].like for action in steps[:-1]]
                written = sum(like.numel() * like.element_size() for like in between)
                yield Candidate(first, end, members, written, why_not)


def with_cascades(
    actions: Sequence[Action], outputs: Sequence[Any], threads: int, tune: bool
) -> list[Action]:
    """Returns the actions with neighbouring steps as cascades where that was measured to be faster:
    those that save the most time together."""
    by_end: dict[int, list[Candidate]] = {}
    for candidate in candidates(actions, outputs, threads):
        by_end.setdefault(candidate.end, []).append(candidate)
    saved = [0.0] * (len(actions) + 1)  # at most, by so many actions from the first on
    chosen: dict[int, tuple[int, Native]] = {}  # by how many actions there are up to the end
    for end in range(1, len(actions) + 1):
        saved[end] = saved[end - 1]
        for candidate in by_end.get(end, ()):
            if candidate.why_not:
                continue
            first, members = candidate.first, candidate.members
            verdict = choose.verdict_on(members, threads, tune)
            if verdict.cut is not None and saved[first] + verdict.gain > saved[end]:
                saved[end] = saved[first] + verdict.gain
                chosen[end] = first, _cascade(actions[first:end], members, verdict.cut)
    found: list[Action] = []
    end = len(actions)
    while end:
        if end in chosen:
            end, cascade = chosen[end]
            found.append(cascade)
        else:
            end -= 1
            found.append(actions[end])
    return found[::-1]


def _cascade(actions: Sequence[Action], members: Sequence[Member], cut: Cut) -> Native:
    steps = [action for action in actions if isinstance(action, Native)]
    step = choose.cascade(members, cut)
    operands = {f"x{at}": steps[number].operands[of] for at, (number, of) in enumerate(step.outer)}
    operands["y"] = steps[-1].operands["y"]
    return Native(", ".join(action.name for action in steps), step, operands)


def _members(actions: Sequence[Native], uses: Counter[Buffer]) -> tuple[list[Member], str]:
    """Returns actions as members of a cascade, none where one of them reads nothing of the others;
    and why they cannot be one, empty where they can."""
    written: dict[Buffer, int] = {}
    inside: Counter[Buffer] = Counter()
    found: list[Member] = []
    why_not = ""
    for number, action in enumerate(actions):
        reads = {
            operand: written[value.buffer]
            for operand, value in action.operands.items()
            if operand != "y" and value.buffer in written
        }
        if number and not reads:
            return [], ""
        found.append(Member(action.step, reads))
        inside.update(value.buffer for value in action.operands.values())
        y = action.operands["y"]
        if number < len(actions) - 1:
            if y.buffer.kind != "arena" or y.buffer in written:
                why_not = "something else reads what is between them"
            written[y.buffer] = number
        if any(layout.offset_of(value.like) for value in (y, *(action.operands[o] for o in reads))):
            why_not = "what is between them is a slice"
    if any(inside[buffer] != uses[buffer] for buffer in written):
        why_not = "something else reads what is between them"
    return found, why_not
