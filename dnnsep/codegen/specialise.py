"""Specialised kernels in the place of general ones, where they are measurably faster."""

from __future__ import annotations

from dnnsep.codegen import tuner
from dnnsep.codegen.choose import plan_key
from dnnsep.codegen.generalstep import GeneralStep
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.program import Program
from dnnsep.codegen.tuner import Buffers, Question
from dnnsep.host import cachefiles
from dnnsep.host.turns import measuring, short_turns

# A specialised kernel has to be faster by this share.
GAIN = 0.02
# What comparing the two kernels of a layer may take.
_SECONDS = 0.1


def question_of(step: GeneralStep) -> Question:
    """Returns what a plan is chosen for where a layer gets a specialised kernel."""
    general = step.general
    return Question(step.problem, general.layer.isa, step.threads, general.extras.dense)


def may_be_specialised(step: GeneralStep) -> bool:
    """Returns whether a specialised kernel of a layer reads the weights as they lie: with all taps
    of its kernel, multiplied in the same way. Others would need another copy of them, and might
    not give the same results to the bit."""
    return layer_of(step.problem, step.general.layer.isa) == step.general.layer


def as_specialised(step: GeneralStep, plan: Plan) -> LayerStep | None:
    """Returns a step by a specialised kernel and the same weights; None where those would have to
    lie otherwise."""
    if Packing(step.general.layer, plan.vectors) != step.general.packing:
        return None
    return LayerStep(step.problem, plan, step.packed, step.general.extras)


def is_known_close(question: Question) -> bool:
    """Returns whether it was measured that a specialised kernel is not faster by ``GAIN``."""
    content = cachefiles.load("general", _key(question))
    try:
        return content is not None and float(content) < 1 + GAIN
    except ValueError:
        return False


def compared(step: GeneralStep, tune: bool) -> tuple[LayerStep | None, float]:
    """Returns a layer by its specialised kernel, whose plan may be measured with ``tune``, and how
    many times as long as that the general kernel takes. Where it has none on the same weights, or
    the machine was not quiet, it is None and 1."""
    if not may_be_specialised(step):
        return None, 1.0
    question, dense = question_of(step), step.dense

    def program(plan: Plan) -> Program:
        return Program([LayerStep(step.problem, plan, step.packed, question.extras).alone()])

    plan = tuner.chosen_plan(question, program, tune)
    found = as_specialised(step, plan)
    if found is None:
        return None, 1.0
    with measuring():
        buffers = Buffers(question)
        calls = [buffers.call(one) for one in (program(plan), Program([dense.alone()]))]
        turns = short_turns(calls, _SECONDS)
    if turns is None or not turns.quiet:
        return None, 1.0
    ratio = turns.ratio(1, 0)
    cachefiles.save("general", _key(question), f"{ratio:.3f}".encode())
    return found, ratio


def _key(question: Question) -> str:
    return plan_key(question.problem, question.isa, question.threads, question.extras)
