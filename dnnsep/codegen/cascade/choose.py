"""Whether layers run as a cascade, and how it is cut up: by measuring it against the layers one
after the other.

Most of what a cascade saves is the traffic of what is between its layers, most of what it costs are
smaller pieces of work. Which is more depends on the CPU's caches, on how many threads share the
memory, and on what surrounds the layers, so it is measured on the first occasion and kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from dnnsep.codegen import tuner
from dnnsep.codegen.cascade.step import CascadeStep, Cut
from dnnsep.codegen.extent import output_rows
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.program import GIVEN, INPUT, OUTPUT, Place, Placed, Program
from dnnsep.codegen.rates import measured_on
from dnnsep.codegen.tuner import Question, candidates
from dnnsep.codegen.version import generator
from dnnsep.codegen.weigh import this_caches
from dnnsep.host import cachefiles
from dnnsep.host.turns import Call, affordable, measuring, short_turns

# What timing the ways of a cascade may take, without compiling kernels.
SECONDS = 1.0
# A cascade must be faster than its layers one after the other by this share.
GAIN = 0.02
# Where a thread's share of what is between two layers is less than this share of its second cache,
# it is in there anyway.
_LEAST_OF_L2 = 1 / 16
# Rows that a band may have, and the shares of the second cache that rolling buffers may take.
_ROWS, _SHARES = (1, 2, 4, 8, 14, 28), (1 / 2, 1 / 8)
# So many ways to cut a cascade up are timed at most.
_MOST = 6
KIND = "cascades"
# The number of the buffer between two layers.
_BETWEEN = 1


@dataclass(frozen=True)
class Verdict:
    """How layers run the fastest: as a cascade that is cut up so, or one after the other, where
    ``cut`` is None; how many times as fast the best cascade was as that, and the seconds that the
    layers take one after the other. Both are 0 where nothing was measured."""

    cut: Cut | None = None
    ratio: float = 0.0
    seconds: float = 0.0

    @property
    def gain(self) -> float:
        """Returns the seconds that the cascade saves."""
        return self.seconds * (1 - 1 / self.ratio) if self.cut is not None else 0.0

    def as_json(self) -> bytes:
        return json.dumps([self.cut and vars(self.cut), self.ratio, self.seconds]).encode()

    @classmethod
    def of_json(cls, content: bytes) -> Verdict:
        """Raises ValueError, TypeError or KeyError where it is none."""
        cut, ratio, seconds = json.loads(content)
        of_cut = None if cut is None else Cut(**{name: int(size) for name, size in cut.items()})
        return cls(of_cut, float(ratio), float(seconds))


_verdicts: dict[str, Verdict] = {}


def fit(first: LayerStep, second: LayerStep) -> bool:
    """Returns whether two layers, of which the second reads just what the first writes, can be a
    cascade."""
    try:
        CascadeStep([first, second], Cut(1, 1, 0))
    except ValueError:
        return False
    return True


def is_worth_a_look(layer: LayerStep, threads: int) -> bool:
    """Returns whether what a layer writes is so much that it might leave its thread's caches before
    the next layer reads it."""
    between = prod(layer.problem.output_shape) * layer.problem.precision.destination.bytes
    return between / threads >= _LEAST_OF_L2 * this_caches().l2


def verdict_on(layers: Sequence[LayerStep], threads: int, tune: bool = True) -> Verdict:
    """Returns how layers run the fastest that follow each other on so many threads: measured
    before, or now where ``tune`` and the environment allow it, or else without a cascade."""
    key = verdict_key(layers, threads)
    if (known := _known(key)) is not None:
        return known
    if not (tuner.wanted() and tune):
        return Verdict()
    with measuring():
        known = _known(key)  # another thread may have measured it meanwhile
        if known is None:
            known = _verdicts[key] = _measure(layers, threads, key)
        return known


def verdict_key(layers: Sequence[LayerStep], threads: int) -> str:
    """Returns what a verdict is filed under."""
    of_layers = " ".join(f"{layer.problem} {layer.extras.dense}" for layer in layers)
    return f"{measured_on(layers[0].plan.isa)} {generator()} {threads} {of_layers}"


def kept_entry(layers: Sequence[LayerStep], threads: int) -> tuple[str, bytes] | None:
    """Returns what a known verdict is kept under and what of it; None where none is known."""
    key = verdict_key(layers, threads)
    known = _known(key)
    return None if known is None else (key, known.as_json())


def cascade(layers: Sequence[LayerStep], cut: Cut) -> CascadeStep:
    """Returns layers, each by the plan that it has or the one for a thread of its own, as a
    cascade."""
    return CascadeStep([_of_one_thread(layer) for layer in layers], cut)


def _known(key: str) -> Verdict | None:
    content = cachefiles.load(KIND, key)
    if content is not None:
        try:
            return Verdict.of_json(content)
        except (ValueError, TypeError, KeyError):
            pass
    return _verdicts.get(key)


def _of_one_thread(layer: LayerStep) -> LayerStep:
    """Returns a layer by a plan in which a thread computes all channels of its pixels."""
    if layer.plan.channel_parts == 1:
        return layer
    question = Question(layer.problem, layer.plan.isa, 1, layer.extras.dense)
    return replace(layer, plan=candidates(question)[0])


def cuts(layers: Sequence[LayerStep], threads: int) -> Iterator[Cut]:
    """Yields the ways to cut a cascade up that are worth timing, the likely ones first: each with
    another schedule, and rolling buffers that fit the second cache."""
    last = _of_one_thread(layers[-1])
    rows, _ = output_rows(last.problem)
    parts = min(threads, last.plan.pieces)
    l2 = this_caches().l2
    seen = set()
    for share in _SHARES:
        for height in reversed(_ROWS):
            band = max(1, last.plan.pieces * height // rows)
            cut = Cut(parts, band, int(share * l2))
            made = cascade(layers, cut).schedule
            if made.bytes <= l2 and made not in seen:
                seen.add(made)
                yield cut


def _measure(layers: Sequence[LayerStep], threads: int, key: str) -> Verdict:
    buffers = _Buffers(layers)
    calls = [buffers.call(_one_by_one(layers))]
    calls[0]()  # the memory is new
    count = min(affordable(calls[0], SECONDS), _MOST + 1)
    if count < 2:
        return Verdict()
    ways = [cut for cut, _ in zip(cuts(layers, threads), range(count - 1), strict=False)]
    calls += [buffers.call(_alone(cascade(layers, cut))) for cut in ways]
    turns = short_turns(calls, SECONDS) if ways else None
    if turns is None:
        return Verdict()
    best = turns.best(GAIN)
    fastest = best or next(number for number in turns.ranking if number)
    cut = ways[best - 1] if best else None
    verdict = Verdict(cut, turns.ratio(0, fastest), turns.seconds(0))
    if turns.quiet:
        cachefiles.save(KIND, key, verdict.as_json())
    return verdict


def _one_by_one(layers: Sequence[LayerStep]) -> Program:
    """Returns layers one after the other, what is between them in buffers of its own."""
    placed = []
    for number, layer in enumerate(layers):
        x = Place(INPUT if number == 0 else _BETWEEN + number - 1)
        y = Place(OUTPUT if number == len(layers) - 1 else _BETWEEN + number)
        placed.append(Placed(layer, {"x": x, "y": y} | _residual(layer)))
    return Program(placed)


def _alone(step: CascadeStep) -> Program:
    operands = {"x": Place(INPUT), "y": Place(OUTPUT)} | _residual(step.layers[-1])
    return Program([Placed(step, operands)])


def _residual(layer: LayerStep) -> dict[str, Place]:
    return {"residual": Place(GIVEN)} if layer.extras.residual else {}


class _Buffers:
    """Memory for what layers read and write."""

    def __init__(self, layers: Sequence[LayerStep]) -> None:
        first, last = layers[0], layers[-1]
        isa = first.plan.isa
        of_first = tuner.Buffers(Question(first.problem, isa, 1))
        of_last = tuner.Buffers(Question(last.problem, isa, 1, last.extras.dense))
        self._held = [of_first, of_last]
        between = [
            np.zeros(
                prod(layer.problem.output_shape) * layer.problem.precision.destination.bytes + 64,
                np.uint8,
            )
            for layer in layers[:-1]
        ]
        self._between = between
        self._places = of_first.places | {
            number: place for number, place in of_last.places.items() if number != INPUT
        }
        for number, memory in enumerate(between):
            self._places[_BETWEEN + number] = memory.ctypes.data + -memory.ctypes.data % 64

    def call(self, program: Program) -> Call:
        """Returns a call of a program on these buffers, which have to outlive it."""
        return program.bound(self._places)
