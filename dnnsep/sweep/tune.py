"""Measures plans of the fused kernel for longer than preparing a layer does; keeps the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dnnsep.backends.base import Verdict
from dnnsep.backends.fused_executor import FusedExecutor
from dnnsep.backends.tensors import to_channels_last
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.layerstep import chosen_step
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.tuner import GAIN, Question, candidates
from dnnsep.codegen.weigh import all_plans, this_caches
from dnnsep.host.affinity import keep_on, pin_workers
from dnnsep.host.turns import Call, Turns, measuring, take_turns
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData

# Each plan is visited so many times, for so long. In the end the fastest few are compared with the
# default and the model's choice alone: of many plans the fastest was also lucky.
_ROUNDS, _LAST_ROUNDS = 7, 15
_FINALISTS = 3
_VISIT_SECONDS = 0.02

# What is told how far a measurement is.
Step = Callable[[str], None]


@dataclass(frozen=True)
class Behind:
    """A plan, and by which share its calls take longer than the fastest plan's."""

    plan: Plan
    share: float


@dataclass(frozen=True)
class Tuned:
    """The time of each plan measured in microseconds, the model's choice first, and the best, which
    is the model's choice unless another one is faster by 1 % at least.

    ``kept`` says whether the best was kept, as it is where the machine was quiet. Where all plans
    were measured, ``default`` is the one that was chosen before, and ``model`` the model's choice.
    """

    times: dict[Plan, float]
    best: Plan
    kept: bool
    default: Behind | None = None
    model: Behind | None = None

    @property
    def gain(self) -> float:
        """Returns how many times as fast as the model's choice the best plan is."""
        return next(iter(self.times.values())) / self.times[self.best]


def tune(problem: Problem, cpus: list[int], every: bool, step: Step) -> Tuned:
    """Measures a problem's plans in turns, a thread on each CPU, and keeps the best: ``every`` plan
    that the model weighs, or those that a layer's preparation measures.

    It is saved in the user's cache folder for later processes. Raises ValueError where a plan's
    result is wrong; nothing is kept then.
    """
    threads = len(cpus)
    torch.set_num_threads(threads)
    keep_on(cpus)
    question = Question(problem, this_isa(), threads)
    data = CheckData.exact(problem)
    plans = candidates(question)
    default = plans[0]
    if every:
        step(f"{problem}: the default")
        default = chosen_step(problem, lambda by: by.pack(data.weights), threads).plan
        plans += all_plans(problem, question.isa, threads, this_caches())
    calls = {}
    for number, plan in enumerate(dict.fromkeys(plans)):
        step(f"{problem}: checks plan {number + 1}")
        calls[plan] = _checked(problem, plan, data)
    plans = list(calls)
    pin_workers(cpus, calls[plans[0]])
    step(f"{problem}: measures {len(plans)} plans")
    turns = _turns([calls[plan] for plan in plans], _ROUNDS)
    best = plans[turns.best(GAIN)]
    times = {plan: turns.seconds(number) * 1e6 for number, plan in enumerate(plans)}
    if not every:
        return _keep(question, Tuned(times, best, turns.quiet))
    fastest = [plans[number] for number in turns.ranking[:_FINALISTS]]
    finalists = list(dict.fromkeys([plans[0], default, *fastest]))
    step(f"{problem}: compares the best {len(finalists)}")
    turns = _turns([calls[plan] for plan in finalists], _LAST_ROUNDS)

    def behind(plan: Plan) -> Behind:
        return Behind(plan, max(0.0, turns.ratio(finalists.index(plan), turns.ranking[0]) - 1))

    best = finalists[turns.best(GAIN)]
    return _keep(question, Tuned(times, best, turns.quiet, behind(default), behind(plans[0])))


def _checked(problem: Problem, plan: Plan, data: CheckData) -> Call:
    """Returns a call by a plan whose result is right. Raises ValueError where it is not."""
    call = FusedExecutor.of(problem, data.weights, plan).bind(
        to_channels_last(data.x, problem.dtype)
    )
    verdict = Verdict(*data.verdict(call().float().numpy()))
    if not verdict:
        raise ValueError(f"{problem}: {plan}: {verdict.reason}")
    return call


def _turns(calls: list[Call], rounds: int) -> Turns:
    with measuring():
        turns = take_turns(calls, rounds, _VISIT_SECONDS)
    assert turns is not None
    return turns


def _keep(question: Question, tuned: Tuned) -> Tuned:
    """Keeps the best plan, if it is to be kept."""
    if tuned.kept:
        question.keep(tuned.best)
        assert question.kept == tuned.best
    return tuned
