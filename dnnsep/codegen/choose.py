"""Which plan a problem runs by: the best that was measured and kept, or else the model's choice."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from dnnsep.codegen.extras import PLAIN, Extras
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.plan import Plan, tile_bytes
from dnnsep.codegen.rates import measured_on
from dnnsep.codegen.version import generator
from dnnsep.codegen.weigh import all_plans, close_plans, cost, layer_for, this_caches
from dnnsep.host import cachefiles
from dnnsep.problem import Problem


def choose(problem: Problem, isa: Isa, threads: int, extras: Extras = PLAIN) -> Plan:
    """Returns the plan that ``keep`` was given, or else the one that costs least by the model."""
    found = kept(problem, isa, threads, extras)
    return close_plans(problem, isa, threads)[0][0] if found is None else found


def describe(
    problem: Problem, chosen: Plan, threads: int, chosen_by: str = ""
) -> list[dict[str, Any]]:
    """Returns the chosen plan, which says what it was chosen by, and after it those that the model
    finds close, each with its cost in cycles."""
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
            "overlap": plan.overlap,
            "dot": layer_for(problem, plan).dot.name,
            "by_model": plan == close[0],
            "chosen": chosen_by if plan == chosen else "",
            "cycles": {k: round(v) for k, v in vars(cost(problem, plan, this_caches())).items()},
        }
        for plan in dict.fromkeys([chosen, *close])
    ]


def keep(problem: Problem, threads: int, plan: Plan, extras: Extras = PLAIN) -> None:
    """Makes ``choose`` return this plan from now on, in this user's other processes too."""
    cachefiles.save("plans", *entry(problem, threads, plan, extras))


def entry(problem: Problem, threads: int, plan: Plan, extras: Extras = PLAIN) -> tuple[str, bytes]:
    """Returns what a plan is kept under, and what of it is kept."""
    key = plan_key(problem, plan.isa, threads, extras)
    return key, json.dumps(_choices(plan)).encode()


def kept(problem: Problem, isa: Isa, threads: int, extras: Extras = PLAIN) -> Plan | None:
    """Returns the plan that was kept: one of those that the model knows, whatever the file says."""
    content = cachefiles.load("plans", plan_key(problem, isa, threads, extras))
    if content is None:
        return None
    try:
        wanted = json.loads(content)
    except ValueError:
        return None
    plans = all_plans(problem, isa, threads, this_caches())
    return next((plan for plan in plans if _choices(plan) == wanted), None)


def _choices(plan: Plan) -> dict[str, Any]:
    """Returns what tells a problem's plans apart."""
    return {
        "tile": plan.tile,
        "pieces": plan.pieces,
        "channel_parts": plan.channel_parts,
        "overlap": plan.overlap,
    }


def plan_key(problem: Problem, isa: Isa, threads: int, extras: Extras = PLAIN) -> str:
    """Returns what a kept plan is filed under: with any pitches the same."""
    return f"{_where(isa, generator())} {threads} {problem} {extras.dense}"


@lru_cache(16)
def _where(isa: Isa, version: str) -> str:
    """Returns ``measured_on``, of a version of the generator: it reads what the system says of the
    caches, and a network asks for it once for each layer."""
    return measured_on(isa)
