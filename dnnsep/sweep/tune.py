"""Measures the plans of the fused kernel whose modelled costs are close, and keeps the best."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from time import perf_counter, perf_counter_ns

import torch

from dnnsep.backends.base import Verdict
from dnnsep.backends.fused_executor import FusedExecutor
from dnnsep.backends.tensors import to_channels_last
from dnnsep.codegen.choose import choose, keep
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.weigh import close_plans
from dnnsep.host.affinity import keep_on, pin_workers
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData

# Plans are measured in turn so many times, each for so long.
_ROUNDS = 7
_VISIT_SECONDS = 0.02

# A plan must be faster than the model's choice by this share, since less is noise.
_GAIN = 0.01


@dataclass(frozen=True)
class Tuned:
    """The time of each plan measured in microseconds, the model's choice first, and the best."""

    times: dict[Plan, float]
    best: Plan

    @property
    def gain(self) -> float:
        """Returns how many times as fast as the model's choice the best plan is, at least 1."""
        return next(iter(self.times.values())) / self.times[self.best]


def tune(problem: Problem, cpus: list[int]) -> Tuned:
    """Measures a problem's close plans in turn, a thread on each CPU, and keeps the best.

    It is saved in the user's cache folder for later processes. Raises ValueError where a plan's
    result is wrong; nothing is kept then.
    """
    threads = len(cpus)
    torch.set_num_threads(threads)
    keep_on(cpus)
    data = CheckData.exact(problem)
    x = to_channels_last(data.x, problem.dtype)
    plans = [plan for plan, _ in close_plans(problem, this_isa(), threads)]
    calls = {}
    for plan in plans:
        call = FusedExecutor.of(problem, data.weights, plan).bind(x)
        verdict = Verdict(*data.verdict(call().float().numpy()))
        if not verdict:
            raise ValueError(f"{problem}: {plan}: {verdict.reason}")
        calls[plan] = call
    pin_workers(cpus, calls[plans[0]])
    fastest_us: dict[Plan, list[float]] = {plan: [] for plan in plans}
    for _ in range(_ROUNDS):
        for plan, call in calls.items():
            fastest, end = float("inf"), perf_counter() + _VISIT_SECONDS
            while perf_counter() < end:
                start = perf_counter_ns()
                call()
                fastest = min(fastest, perf_counter_ns() - start)
            fastest_us[plan].append(fastest / 1000)
    times = {plan: median(of_plan) for plan, of_plan in fastest_us.items()}
    best = min(plans, key=lambda plan: times[plan])
    if times[best] > (1 - _GAIN) * times[plans[0]]:
        best = plans[0]
    keep(problem, threads, best)
    assert choose(problem, this_isa(), threads) == best
    return Tuned(times, best)
