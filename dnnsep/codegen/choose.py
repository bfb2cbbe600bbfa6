"""Which plan a problem runs by: the best that was measured, or else the model's choice."""

from __future__ import annotations

import json
from typing import Any

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.plan import Plan, tile_bytes
from dnnsep.codegen.version import generator
from dnnsep.codegen.weigh import all_plans, close_plans, cost, layer_for, this_caches
from dnnsep.host import cachefiles
from dnnsep.problem import Problem


def choose(problem: Problem, isa: Isa, threads: int) -> Plan:
    """Returns the plan that ``keep`` was given, or else the one that costs least by the model."""
    kept = _kept(problem, isa, threads)
    if kept is None:
        return close_plans(problem, isa, threads)[0][0]
    return kept


def describe(problem: Problem, chosen: Plan, threads: int) -> list[dict[str, Any]]:
    """Returns the chosen plan and, after it, those that the model finds close, each with its cost
    in cycles."""
    close = [plan for plan, _ in close_plans(problem, chosen.isa, threads)]
    return [
        {
            "pixels": plan.pixels,
            "channels": plan.vectors * plan.isa.lanes,
            "tile": plan.tile,
            "tile_bytes": tile_bytes(problem, layer_for(problem, plan), plan),
            "pixel_parts": plan.pixel_parts,
            "channel_parts": plan.channel_parts,
            "streaming": plan.streaming,
            "prefetch": plan.prefetch,
            "ahead": bool(plan.ahead),
            "by_model": plan == close[0],
            "cycles": {k: round(v) for k, v in vars(cost(problem, plan, this_caches())).items()},
        }
        for plan in dict.fromkeys([chosen, *close])
    ]


def keep(problem: Problem, threads: int, plan: Plan) -> None:
    """Makes ``choose`` return this plan from now on, in this user's other processes too."""
    content = json.dumps(_choices(plan)).encode()
    cachefiles.save("plans", plan_key(problem, plan.isa, threads), content)


def _kept(problem: Problem, isa: Isa, threads: int) -> Plan | None:
    """Returns the plan that was kept: one of those that the model knows, whatever the file says."""
    content = cachefiles.load("plans", plan_key(problem, isa, threads))
    if content is None:
        return None
    try:
        wanted = json.loads(content)
    except ValueError:
        return None
    plans = all_plans(problem, isa, threads, this_caches())
    return next((plan for plan in plans if _choices(plan) == wanted), None)


def _choices(plan: Plan) -> dict[str, int]:
    """Returns what tells a problem's plans apart."""
    return {"tile": plan.tile, "channel_parts": plan.channel_parts}


def plan_key(problem: Problem, isa: Isa, threads: int) -> str:
    """Returns what a kept plan is filed under."""
    return f"{generator()} {isa} {threads} {problem}"
