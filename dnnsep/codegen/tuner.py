"""Plans chosen by measuring: a few are timed when a layer is first prepared on this CPU, and the
best one is kept for later processes.

The model puts plans in order well enough to say which few are worth timing, not which is best.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen.choose import keep, kept, plan_key
from dnnsep.codegen.extras import PLAIN, Extras
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.program import GIVEN, INPUT, OUTPUT
from dnnsep.codegen.weigh import all_plans, cost, this_caches
from dnnsep.dtypes import TensorDtype
from dnnsep.host.turns import Call, affordable, measuring, short_turns
from dnnsep.problem import Problem

if TYPE_CHECKING:
    from dnnsep.codegen.layerstep import LayerStep
    from dnnsep.codegen.program import Program

# With 0 nothing is measured: plans are those that were kept before, or the model's choice.
VARIABLE = "DNNSEP_TUNE"

# What timing the plans of a layer may take, without compiling their kernels.
SECONDS = 0.25

# A plan must be faster than the model's choice by this share, since less is noise.
GAIN = 0.01

# So many plans are timed at most. They have a kernel for each way to split the threads (of a tile
# unit with and without overlap) and so many further ones, since compiling a kernel takes longer
# than timing the plans that share it.
_MOST, _MORE_KERNELS = 12, 2
# So many of them are compared once more.
_FINALISTS = 3
# Where among the sizes of tiles, from 0 for the smallest to 1 for the largest, some are taken.
_SPREAD = (0.5, 0.0, 1.0, 0.25, 0.75)

# Calls on more input and output take too long to be timed, and so much memory is not taken for it.
_MOST_BYTES = 1 << 30

_LINE = 64
# Random values that buffers are filled with, again and again.
_VALUES = 1 << 16


@dataclass(frozen=True)
class Question:
    """What a plan is chosen for."""

    problem: Problem
    isa: Isa
    threads: int
    extras: Extras = PLAIN

    @property
    def kept(self) -> Plan | None:
        """The best plan by an earlier measurement, if there was one."""
        return kept(self.problem, self.isa, self.threads, self.extras)

    def keep(self, plan: Plan) -> None:
        """Keeps the best plan of a measurement."""
        keep(self.problem, self.threads, plan, self.extras)


@dataclass(frozen=True)
class _Answer:
    plan: Plan
    measured: bool


# What this process found, so that it does not measure again what it could not decide or keep.
_answers: dict[str, _Answer] = {}


def wanted() -> bool:
    """Returns whether the environment allows measuring. Raises ValueError where it says neither."""
    value = os.environ.get(VARIABLE) or "1"
    if value not in ("0", "1"):
        raise ValueError(f"{VARIABLE}={value!r}: must be 0 or 1")
    return value == "1"


def chosen_plan(question: Question, program: Callable[[Plan], Program], tune: bool = True) -> Plan:
    """Returns the best plan by a measurement kept from before, by one made now, or by the model.

    ``program`` returns what runs the problem by a plan: its residual is what is given. Nothing is
    measured where ``tune`` is false or the environment forbids it.
    """
    if (known := _known(question)) is not None:
        return known.plan
    if not (wanted() and tune):
        return candidates(question)[0]
    with measuring():
        known = _known(question)  # another thread may have measured it meanwhile
        if known is None:
            known = _answers[_key(question)] = _measure(question, program)
        return known.plan


def chosen_by(question: Question, plan: Plan) -> str:
    """Returns what a plan was chosen by: "measured", "by model" or "the only one"."""
    if len(candidates(question)) == 1:
        return "the only one"
    return "measured" if _known(question) == _Answer(plan, measured=True) else "by model"


def step_chosen_by(step: LayerStep, threads: int) -> str:
    """Returns what the plan of a step was chosen by, for so many threads."""
    return chosen_by(Question(step.problem, step.plan.isa, threads, step.extras), step.plan)


def candidates(question: Question) -> list[Plan]:
    """Returns the plans worth timing: the model's choice, then others in the order in which they
    are likely to be better.

    These are the best of each way to split the threads, then by turns what the model finds next
    best and, of each way, tiles of all sizes.
    """
    caches = this_caches()
    plans = list(all_plans(question.problem, question.isa, question.threads, caches))
    plans.sort(key=lambda plan: cost(question.problem, plan, caches).cycles)
    ways: dict[tuple[int, bool], list[Plan]] = {}
    for plan in plans:
        ways.setdefault((plan.channel_parts, plan.overlap), []).append(plan)
    by_size = [sorted(of_way, key=lambda plan: plan.tile) for of_way in ways.values()]
    ordered = [of_way[0] for of_way in ways.values()]
    for number, share in enumerate(_SPREAD):
        ordered += plans[number + 1 : number + 2]
        ordered += [of_way[round(share * (len(of_way) - 1))] for of_way in by_size]
    kernels = list(dict.fromkeys(plan.untiled for plan in ordered))[: len(ways) + _MORE_KERNELS]
    return [plan for plan in dict.fromkeys(ordered) if plan.untiled in kernels][:_MOST]


def _known(question: Question) -> _Answer | None:
    """Returns what was measured before, by this process or another."""
    plan = question.kept
    return _answers.get(_key(question)) if plan is None else _Answer(plan, measured=True)


def _measure(question: Question, program: Callable[[Plan], Program]) -> _Answer:
    """Times the candidates, and keeps the best where the machine was quiet."""
    plans = candidates(question)
    by_model = _Answer(plans[0], measured=False)
    if len(plans) == 1 or _bytes(question.problem) > _MOST_BYTES:
        return by_model
    buffers = Buffers(question)
    calls = _affordable_calls(plans, lambda plan: buffers.call(program(plan)))
    turns = short_turns(calls, SECONDS / 2) if len(calls) > 1 else None
    if turns is None:
        return by_model
    # Of many plans the fastest was also lucky: the first few have as long again for themselves.
    fastest = [number for number in turns.ranking if number][: _FINALISTS - 1]
    finalists = [0, *fastest]
    turns = short_turns([calls[number] for number in finalists], SECONDS / 2)
    if turns is None:
        return by_model
    best = plans[finalists[turns.best(GAIN)]]
    if turns.quiet:
        question.keep(best)
    return _Answer(best, measured=turns.quiet or best != plans[0])


def _affordable_calls(plans: list[Plan], call: Callable[[Plan], Call]) -> list[Call]:
    """Returns calls by plans, of as many of the first ones as there is time to measure; fewer than
    two where there is not even time for that."""
    first = call(plans[0])
    count = affordable(first, SECONDS / 2)
    return [first, *map(call, plans[1:count])] if count > 1 else []


def _bytes(problem: Problem) -> int:
    precision = problem.precision
    read = prod(problem.input_shape) * precision.source.bytes
    return read + prod(problem.output_shape) * precision.destination.bytes


class Buffers:
    """Memory for the input, the residual and the result of a problem."""

    def __init__(self, question: Question) -> None:
        problem = question.problem
        # Neither denormal nor negative: activations make no zeros of sums of these.
        values = np.random.default_rng(0).random(_VALUES, np.float32) + np.float32(0.5)
        precision = problem.precision
        self._x = _filled(_stored(values, precision.source), prod(problem.input_shape))
        self._y = _filled(_stored(values, precision.destination), prod(problem.output_shape))
        self._residual = self._y.copy() if question.extras.residual else None

    @property
    def places(self) -> dict[int, int]:
        """Returns their addresses, by the numbers that a program knows them by."""
        given = self._x if self._residual is None else self._residual
        buffers = {INPUT: self._x, GIVEN: given, OUTPUT: self._y}
        return {number: memory.ctypes.data for number, memory in buffers.items()}

    def call(self, program: Program) -> Call:
        """Returns a call of a program on these buffers, which have to outlive it."""
        return program.bound(self.places)


def _stored(values: NDArray[np.float32], dtype: TensorDtype) -> NDArray[Any]:
    """Returns values as a dtype has them in memory."""
    return dtype.stored(dtype.rounded(values))


def _filled(values: NDArray[Any], size: int) -> NDArray[Any]:
    """Returns so many values in memory that starts at a cache line."""
    room = np.resize(values, size + _LINE // values.itemsize)
    return room[-room.ctypes.data % _LINE // values.itemsize :][:size]


def _key(question: Question) -> str:
    return plan_key(question.problem, question.isa, question.threads, question.extras)
