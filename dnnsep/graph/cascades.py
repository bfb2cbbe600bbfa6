"""Finds layers in a network that run as cascades (codegen/cascade).

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dnnsep.codegen.cascade import choose
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.graph import layout
from dnnsep.graph.network import Action, Buffer, Native, Value, values_of


def with_cascades(
    actions: Sequence[Action], outputs: Sequence[Any], threads: int, tune: bool
) -> list[Action]:
    """Returns the actions with pairs of layers as cascades where that was measured to be faster:
    of neighbouring pairs those that save the most time together."""
    uses = Counter(value.buffer for action in actions for value in values_of(action))
    uses.update(value.buffer for value in outputs if isinstance(value, Value))
    saved = [0.0] * (len(actions) + 1)  # at most, by so many actions from the first on
    pairs: dict[int, Native] = {}  # by how many actions there are up to its end
    for end in range(1, len(actions) + 1):
        saved[end] = saved[end - 1]
        first, second = actions[end - 2 : end] if end > 1 else (None, None)
        if not isinstance(first, Native) or not isinstance(second, Native):
            continue
        layers = _pair(first, second, uses)
        if layers is None or not choose.is_worth_a_look(layers[0], threads):
            continue
        verdict = choose.verdict_on(layers, threads, tune)
        if verdict.cut is not None and saved[end - 2] + verdict.gain > saved[end]:
            saved[end] = saved[end - 2] + verdict.gain
            operands = second.operands | {"x": first.operands["x"]}
            step = choose.cascade(layers, verdict.cut)
            pairs[end] = Native(f"{first.name} and {second.name}", step, operands)
    found: list[Action] = []
    end = len(actions)
    while end:
        pair = pairs.get(end)
        found.append(actions[end - 1] if pair is None else pair)
        end -= 1 if pair is None else 2
    return found[::-1]


def _pair(first: Native, second: Native, uses: Counter[Buffer]) -> list[LayerStep] | None:
    """Returns two actions' layers where the second one reads just what the first one writes, which
    nothing else does; None where they cannot be a cascade."""
    one, other = first.step, second.step
    if not isinstance(one, LayerStep) or not isinstance(other, LayerStep):
        return None
    between, read = first.operands["y"], second.operands["x"]
    is_pair = (
        first.waits
        and second.waits
        and between.buffer is read.buffer
        and between.buffer.kind == "arena"
        and uses[between.buffer] == 2
        and layout.offset_of(between.like) == layout.offset_of(read.like) == 0
        and choose.fit(one, other)
    )
    return [one, other] if is_pair else None
