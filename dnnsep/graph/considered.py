"""Which layers of a network were looked at as cascades, and why those that are none are not.

All that ``dnnsep explain`` knows of cascades is here. Imports torch: import it from inside
functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from dnnsep.backends.fused_executor import impl_name
from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.step import CascadeStep, Cut
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.weigh import this_caches
from dnnsep.graph.network import Action, Native, Network, Value, values_of
from dnnsep.problem import Problem


@dataclass(frozen=True)
class Looked:
    """Two layers that follow each other, and whether they run as a cascade.

    ``ratio`` is how many times as fast the best cascade was measured to be as one layer after the
    other, None where nothing was measured. ``between_bytes`` is what a thread writes between them
    on average, ``l2_bytes`` its second cache, and ``why_not`` is empty where they are a cascade.
    """

    problems: tuple[str, ...]
    taken: bool
    ratio: float | None
    between_bytes: int
    l2_bytes: int
    why_not: str


def described(step: CascadeStep) -> tuple[tuple[str, ...], str]:
    """Returns the problems of a cascade's layers, and what runs them and how they are cut up."""
    problems = tuple(str(layer.problem) for layer in step.layers)
    cut = f"{step.cut.parts} parts, bands of {step.cut.band} pieces"
    text = f"{impl_name(step.layers)}, cascade: {cut}, buffers of {step.schedule.bytes} bytes"
    return problems, text


def looked_at(taken: Sequence[Action], plain: Network, threads: int) -> Iterator[Looked]:
    """Yields the neighbouring layers of a network without cascades, ``taken`` being the actions
    with them."""
    for layers, why_not in _in_a_row(plain, threads):
        first, second = (layer.problem for layer in layers)
        in_cascade, ratio = any(_has(action, (first, second)) for action in taken), None
        if not why_not:
            verdict = choose.verdict_on(layers, threads)
            ratio = verdict.ratio or None
            why_not = "" if in_cascade else _why_not(verdict)
        written = prod(first.output_shape) * first.precision.destination.bytes
        texts = (str(first), str(second))
        yield Looked(texts, in_cascade, ratio, written // threads, this_caches().l2, why_not)


def worth_a_look(plain: Network, threads: int) -> list[list[LayerStep]]:
    """Returns the neighbouring layers of a network without cascades that are measured as one."""
    return [layers for layers, why_not in _in_a_row(plain, threads) if not why_not]


def _in_a_row(plain: Network, threads: int) -> Iterator[tuple[list[LayerStep], str]]:
    """Yields neighbouring layers, of which the second reads what the first writes, and why they are
    not measured as a cascade; empty where they are."""
    uses = Counter(value.buffer for action in plain.actions for value in values_of(action))
    uses.update(value.buffer for value in plain.outputs if isinstance(value, Value))
    for first, second in pairwise(plain.actions):
        if not isinstance(first, Native) or not isinstance(second, Native):
            continue
        one, other = first.step, second.step
        if not isinstance(one, LayerStep) or not isinstance(other, LayerStep):
            continue
        between = first.operands["y"].buffer
        if between is not second.operands["x"].buffer:
            continue
        why_not = ""
        if uses[between] > 2:
            why_not = "something else reads what is between them"
        elif reason := _cannot(one, other):
            why_not = reason
        elif not choose.is_worth_a_look(one, threads):
            why_not = "what is between them stays in the second cache"
        yield [one, other], why_not


def _has(action: Action, problems: tuple[Problem, Problem]) -> bool:
    """Returns whether an action is a cascade that has two layers one after the other."""
    if not isinstance(action, Native) or not isinstance(action.step, CascadeStep):
        return False
    return problems in pairwise(layer.problem for layer in action.step.layers)


def _cannot(first: LayerStep, second: LayerStep) -> str:
    """Returns why two layers cannot be a cascade; empty where they can."""
    try:
        CascadeStep([first, second], Cut(1, 1, 0))
    except ValueError as reason:
        return str(reason)
    return ""


def _why_not(verdict: choose.Verdict) -> str:
    if verdict.cut is not None:
        return "another cascade with one of them saves more"
    if verdict.ratio:
        return f"not faster by {choose.GAIN:.0%} in most rounds"
    return "not measured: DNNSEP_TUNE=0, too slow, or the machine was not quiet"
