"""Finds steps in a network that run as cascades (codegen/cascade).

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.links import Member
from dnnsep.codegen.cascade.step import Cut
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.graph import layout
from dnnsep.graph.network import Action, Buffer, Native, Value, values_of

# A cascade has so many steps at most: a block with squeeze and excitation has six.
_MOST = 6


def with_cascades(
    actions: Sequence[Action], outputs: Sequence[Any], threads: int, tune: bool
) -> list[Action]:
    """Returns the actions with neighbouring steps as cascades where that was measured to be faster:
    those that save the most time together."""
    uses = Counter(value.buffer for action in actions for value in values_of(action))
    uses.update(value.buffer for value in outputs if isinstance(value, Value))
    saved = [0.0] * (len(actions) + 1)  # at most, by so many actions from the first on
    chosen: dict[int, tuple[int, Native]] = {}  # by how many actions there are up to the end
    for end in range(1, len(actions) + 1):
        saved[end] = saved[end - 1]
        for first, members in _candidates(actions[:end], uses):
            if not choose.fit(members, threads) or not choose.is_worth_a_look(members, threads):
                continue
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


def _candidates(
    actions: Sequence[Action], uses: Counter[Buffer]
) -> Iterator[tuple[int, list[Member]]]:
    """Yields the ends of the actions that could be cascades, as the number of the first action and
    the members: pairs of layers, and longer ones where not all are layers."""
    for count in range(2, min(_MOST, len(actions)) + 1):
        first = actions[-count]
        if not isinstance(first, Native) or not first.waits:
            return
        steps = [step for step in actions[-count:] if isinstance(step, Native)]
        if count > 2 and all(isinstance(action.step, LayerStep) for action in steps):
            continue
        members = _members(steps, uses)
        if members is not None:
            yield len(actions) - count, members


def _members(actions: Sequence[Native], uses: Counter[Buffer]) -> list[Member] | None:
    """Returns actions as members of a cascade; None where something else uses what one of them
    writes for another, or where one reads nothing of the others."""
    written: dict[Buffer, int] = {}
    inside: Counter[Buffer] = Counter()
    found: list[Member] = []
    for number, action in enumerate(actions):
        reads = {
            operand: written[value.buffer]
            for operand, value in action.operands.items()
            if operand != "y" and value.buffer in written
        }
        if number and not reads:
            return None
        found.append(Member(action.step, reads))
        inside.update(value.buffer for value in action.operands.values())
        y = action.operands["y"]
        if number < len(actions) - 1:
            if y.buffer.kind != "arena" or y.buffer in written:
                return None
            written[y.buffer] = number
        if any(layout.offset_of(value.like) for value in (y, *(action.operands[o] for o in reads))):
            return None
    if any(inside[buffer] != uses[buffer] for buffer in written):
        return None
    return found
