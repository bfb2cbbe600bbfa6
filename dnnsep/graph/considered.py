"""Which layers of a network were looked at as cascades, and why those that are none are not.

All that ``dnnsep explain`` knows of cascades is here. Imports torch: import it from inside
functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dnnsep.backends.fused_executor import impl_name
from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.links import Member
from dnnsep.codegen.cascade.step import CascadeStep
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.weigh import this_caches
from dnnsep.graph.cascades import candidates
from dnnsep.graph.network import Action, Native, Network


@dataclass(frozen=True)
class Looked:
    """Steps that follow each other, by the problems of those that are layers, and whether they run
    as a cascade.

    ``ratio`` is how many times as fast the best cascade was measured to be as one step after the
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
    """Returns what a cascade computes, and what runs it and how it is cut up."""
    layers = [member.step for member in step.members if isinstance(member.step, LayerStep)]
    cut = f"{step.cut.parts} parts, bands of {step.cut.band} pixels"
    text = f"{impl_name(layers)}, cascade: {cut}, buffers of {step.schedule.bytes} bytes"
    return texts_of(step.members), text


def texts_of(members: Sequence[Member]) -> tuple[str, ...]:
    """Returns the problems of those members that are layers, and what others are."""
    return tuple(
        str(member.step.problem)
        if isinstance(member.step, LayerStep)
        else type(member.step).__name__.removesuffix("Step")
        for member in members
    )


def looked_at(taken: Sequence[Action], plain: Network, threads: int) -> Iterator[Looked]:
    """Yields the neighbouring steps of a network without cascades, ``taken`` being the actions with
    them."""
    cascades = [
        texts_of(action.step.members)
        for action in taken
        if isinstance(action, Native) and isinstance(action.step, CascadeStep)
    ]
    for candidate in candidates(plain.actions, plain.outputs, threads):
        texts, why_not = texts_of(candidate.members), candidate.why_not
        in_cascade, ratio = texts in cascades, None
        if not why_not:
            verdict = choose.verdict_on(candidate.members, threads)
            ratio = verdict.ratio or None
            why_not = "" if in_cascade else _why_not(verdict)
        written = candidate.between_bytes // threads
        yield Looked(texts, in_cascade, ratio, written, this_caches().l2, why_not)


def worth_a_look(plain: Network, threads: int) -> list[list[Member]]:
    """Returns the neighbouring steps of a network without cascades that are measured as one."""
    found = candidates(plain.actions, plain.outputs, threads)
    return [candidate.members for candidate in found if not candidate.why_not]


def _why_not(verdict: choose.Verdict) -> str:
    if verdict.cut is not None:
        return "another cascade with some of them saves more"
    if verdict.ratio:
        return f"not faster by {choose.GAIN:.0%} in most rounds"
    return "not measured: DNNSEP_TUNE=0, too slow, or the machine was not quiet"
