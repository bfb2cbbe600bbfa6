"""Whether steps run as a cascade, and how it is cut up: by measuring it against the steps one after
the other.

Most of what a cascade saves is the traffic of what is between its members, most of what it costs
are smaller pieces of work. Which is more depends on the CPU's caches, on how many threads share the
memory, and on what surrounds the steps, so it is measured on the first occasion and kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen import tuner
from dnnsep.codegen.cascade.links import AnyLink, Dense, Member
from dnnsep.codegen.cascade.schedule import Schedule
from dnnsep.codegen.cascade.step import CascadeStep, Cut
from dnnsep.codegen.generalstep import GeneralStep
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.program import Place, Placed, Program
from dnnsep.codegen.rates import measured_on
from dnnsep.codegen.rowwise.step import PixelReductionStep
from dnnsep.codegen.version import generator
from dnnsep.codegen.weigh import all_plans, cost, this_caches
from dnnsep.dtypes import TENSOR_DTYPES
from dnnsep.host import cachefiles
from dnnsep.host.pages import ask_for_large_pages
from dnnsep.host.turns import Call, Turns, affordable, measuring, short_turns

# What timing the ways of a cascade may take, without compiling kernels: more where steps take long.
_SECONDS, _CALLS, _MOST_SECONDS = 0.3, 12, 2.0
# A cascade must be faster than its steps one after the other by this share.
GAIN = 0.02
# What is not settled is measured so many times at most.
TRIES = 3
# Where a thread's share of what is between two steps is less than this share of its second cache,
# it is in there anyway.
_LEAST_OF_L2 = 1 / 16
# Of the largest tensor between steps.
_LEAST_OF_MOST = 1 / 5
# Rows that a band may have, and the shares of the second cache that rolling buffers may take.
_ROWS, _SHARES = (1, 2, 4, 8, 14, 28), (1 / 8, 1 / 2)
# A band's pixels where no kernel is larger than a pixel: multiples of this.
_PIXELS = 56
# So many ways to cut a cascade up are timed at most.
_MOST = 3
KIND = "cascades"
# A cascade in one band, where the cut does not matter.
_WHOLE = Cut(1, 1 << 40, 0)


@dataclass(frozen=True)
class Verdict:
    """How steps run the fastest: as a cascade that is cut up so, or one after the other, where
    ``cut`` is None; how many times as fast the best cascade was as that, and the seconds that the
    steps take one after the other. Both are 0 where nothing was measured. ``in_network`` says
    whether that was measured within a network, and not of these steps alone."""

    cut: Cut | None = None
    ratio: float = 0.0
    seconds: float = 0.0
    in_network: bool = False

    @property
    def gain(self) -> float:
        """Returns the seconds that the cascade saves."""
        return self.seconds * (1 - 1 / self.ratio) if self.cut is not None else 0.0

    def as_json(self) -> bytes:
        cut = self.cut and vars(self.cut)
        return json.dumps([cut, self.ratio, self.seconds, self.in_network]).encode()

    @classmethod
    def of_json(cls, content: bytes) -> Verdict:
        """Raises ValueError, TypeError or KeyError where it is none."""
        cut, ratio, seconds, in_network = json.loads(content)
        of_cut = None if cut is None else Cut(**{name: int(size) for name, size in cut.items()})
        if of_cut is not None and min(of_cut.parts, of_cut.band) < 1:
            raise ValueError(f"{of_cut}: there is no such cut")
        return cls(of_cut, float(ratio), float(seconds), bool(in_network))


_verdicts: dict[str, Verdict] = {}


def why_not_measured(members: Sequence[Member], threads: int) -> str:
    """Returns why steps are not worth being measured as a cascade for so many threads; empty where
    they are."""
    try:
        made = cascade(members, _WHOLE)
        assert made.schedule
    except ValueError as reason:
        return str(reason)
    if made.by_image and made.images < threads:
        return "all threads need all pixels of an image"
    if not is_worth_a_look(members, threads):
        return "what is between them stays in the second cache"
    return ""


def is_worth_a_look(members: Sequence[Member], threads: int) -> bool:
    """Returns whether what a member writes for another is so much that it might leave its thread's
    caches before that reads it. What the first one writes, and what the last one reads, has to be
    more than a small part of it: else a shorter cascade saves as much."""
    links = CascadeStep(members, _WHOLE).links
    between = [link.out.bytes for link in links[:-1]]
    if max(between) / threads < _LEAST_OF_L2 * this_caches().l2:
        return False
    read = max(between[source] for source in links[-1].reads.values())
    return min(between[0], read) >= _LEAST_OF_MOST * max(between)


def verdict_on(members: Sequence[Member], threads: int, tune: bool = True) -> Verdict:
    """Returns how steps run the fastest that follow each other on so many threads: measured
    before, or now where ``tune`` and the environment allow it, or else without a cascade."""
    key = verdict_key(members, threads)
    if (known := _known(key)) is not None:
        return known
    if not (tuner.wanted() and tune):
        return Verdict()
    with measuring():
        known = _known(key)  # another thread may have measured it meanwhile
        if known is None:
            known, is_quiet = measure(members, threads)
            note(members, threads, known, keep=is_quiet)
        return known


def note(members: Sequence[Member], threads: int, verdict: Verdict, keep: bool) -> None:
    """Enters a verdict, for this process or with ``keep`` for later ones, too."""
    key = verdict_key(members, threads)
    _verdicts[key] = verdict
    if keep:
        cachefiles.save(KIND, key, verdict.as_json())


def verdict_key(members: Sequence[Member], threads: int) -> str:
    """Returns what a verdict is filed under."""
    of_members = " ".join(f"{_described(member)} {dict(member.reads)}" for member in members)
    return f"{measured_on(this_isa())} {generator()} {threads} {of_members}"


def _described(member: Member) -> str:
    step = member.step
    if isinstance(step, LayerStep):
        return f"{step.problem} {step.extras.dense}"
    if isinstance(step, GeneralStep):
        return f"general {step.problem} {step.general.extras.dense}"
    return str(step)


def kept_entry(members: Sequence[Member], threads: int) -> tuple[str, bytes] | None:
    """Returns what a known verdict is kept under and what of it; None where none is known."""
    key = verdict_key(members, threads)
    known = _known(key)
    return None if known is None else (key, known.as_json())


def cascade(members: Sequence[Member], cut: Cut) -> CascadeStep:
    """Returns steps as a cascade, each layer by the plan that it has or one that is cut up as the
    cascade needs it: a thread computes all channels of its pixels, and where all pixels of an image
    were reduced before, no piece reaches over two images."""
    found: list[Member] = []
    after: set[int] = set()  # the members after a reduction
    images = 1
    for number, member in enumerate(members):
        step = member.step
        if isinstance(step, PixelReductionStep):
            images = step.images
            after.add(number)
        elif after.intersection(member.reads.values()):
            after.add(number)
        if isinstance(step, LayerStep):
            threads = images if number in after else 1
            member = replace(member, step=_replanned(step, threads))
        found.append(member)
    return CascadeStep(found, cut)


def _replanned(layer: LayerStep, images: int) -> LayerStep:
    plan = layer.plan
    if plan.channel_parts == 1 and plan.pieces % images == 0:
        return layer
    caches = this_caches()
    plans = (
        plan
        for plan in all_plans(layer.problem, plan.isa, images, caches)
        if plan.channel_parts == 1 and plan.pieces % images == 0
    )
    best = min(plans, key=lambda plan: cost(layer.problem, plan, caches).cycles, default=None)
    if best is None:
        raise ValueError("no plan has pieces of one image each")
    return replace(layer, plan=best)


def _known(key: str) -> Verdict | None:
    if (here := _verdicts.get(key)) is not None:
        return here
    content = cachefiles.load(KIND, key)
    if content is not None:
        try:
            return Verdict.of_json(content)
        except (ValueError, TypeError, KeyError):
            pass
    return None


def cuts(members: Sequence[Member], threads: int) -> Iterator[Cut]:
    """Yields the ways to cut a cascade up that are worth timing, the likely ones first: each with
    another schedule, and rolling buffers that fit the second cache."""
    sample = cascade(members, _WHOLE)
    width = row_pixels(sample.links)
    parts = min(threads, len(sample.links[-1].starts) - 1)
    l2 = this_caches().l2
    seen: list[Schedule] = []
    for share in _SHARES:
        for height in reversed(_ROWS):
            cut = Cut(parts, height * width, int(share * l2))
            made = CascadeStep(sample.members, cut).schedule
            if made.bytes <= l2 and made not in seen:
                seen.append(made)
                yield cut


def row_pixels(links: Sequence[AnyLink]) -> int:
    """Returns how many pixels a row of a cascade's output has, as bands are counted in."""
    widths = [link.width for link in links if link.width]
    return widths[-1] if widths else _PIXELS


def measure(members: Sequence[Member], threads: int) -> tuple[Verdict, bool]:
    """Measures steps alone as a cascade, cut up in some ways, and one after the other; returns the
    verdict, and whether the machine was quiet enough to keep it. Call it within ``measuring``."""
    buffers = _Buffers(CascadeStep(members, _WHOLE))
    calls = [buffers.call(buffers.one_by_one)]
    calls[0]()  # the memory is new
    start = perf_counter()
    calls[0]()
    seconds = min(max(_SECONDS, _CALLS * (perf_counter() - start)), _MOST_SECONDS)
    count = min(affordable(calls[0], seconds), _MOST + 1)
    if count < 2:
        return Verdict(), False
    ways = [cut for cut, _ in zip(cuts(members, threads), range(count - 1), strict=False)]
    calls += [buffers.call(buffers.alone(cascade(members, cut))) for cut in ways]
    turns = short_turns(calls, seconds) if ways else None
    for _ in range(TRIES - 1):
        if turns is not None and not turns.quiet:
            turns = short_turns(calls, seconds)
    if turns is None:
        return Verdict(), False
    best = turns.best(GAIN)
    fastest = best or next(number for number in turns.ranking if number)
    cut = ways[best - 1] if best else None
    return Verdict(cut, turns.ratio(0, fastest), turns.seconds(0)), turns.quiet


def is_settled(turns: Turns) -> bool:
    """Returns whether it is known if the second call is faster than the first: on a quiet machine,
    and not faster in the median but in too few rounds."""
    return turns.quiet and (turns.best(GAIN) > 0 or turns.ratio(0, 1) < 1 + GAIN)


class _Buffers:
    """Memory for what steps read and write, each member's output in a buffer of its number, each
    operand from outside in one of the next numbers."""

    def __init__(self, steps: CascadeStep) -> None:
        self._steps = steps
        outer = [steps.links[number].operands[operand] for number, operand in steps.outer]
        self._held = [_filled(like) for like in (*(link.out for link in steps.links), *outer)]
        self._places = {
            number: memory.ctypes.data + -memory.ctypes.data % 64
            for number, memory in enumerate(self._held)
        }
        count = len(steps.links)
        self._outer = {of: count + number for number, of in enumerate(steps.outer)}

    @property
    def one_by_one(self) -> Program:
        """The steps one after the other."""
        placed = []
        for number, (member, link) in enumerate(
            zip(self._steps.members, self._steps.links, strict=True)
        ):
            operands = {"y": Place(number)}
            for operand in link.operands:
                source = member.reads.get(operand)
                buffer = self._outer[(number, operand)] if source is None else source
                operands[operand] = Place(buffer)
            placed.append(Placed(member.step, operands))
        return Program(placed)

    def alone(self, made: CascadeStep) -> Program:
        """Returns a cascade of the same members."""
        operands = {"y": Place(len(made.links) - 1)}
        operands |= {f"x{at}": Place(self._outer[of]) for at, of in enumerate(made.outer)}
        return Program([Placed(made, operands)])

    def call(self, program: Program) -> Call:
        """Returns a call of a program on these buffers, which have to outlive it."""
        return program.bound(self._places)


def _filled(like: Dense) -> NDArray[np.uint8]:
    """Returns memory for a tensor, with room to begin at a cache line: neither denormal nor
    negative values, of whose sums activations make no zeros."""
    values = np.random.default_rng(0).random(4096, np.float32) + np.float32(0.5)
    dtype = TENSOR_DTYPES[like.dtype]
    stored = dtype.stored(dtype.rounded(values)).view(np.uint8)
    memory = np.empty(like.bytes + 64, np.uint8)
    ask_for_large_pages(memory.ctypes.data, memory.nbytes)  # as a network's memory has
    memory[:] = np.resize(stored, memory.nbytes)
    return memory
