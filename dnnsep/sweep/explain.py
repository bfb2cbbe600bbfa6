"""Finds what runs where: one problem's oneDNN log, and which backends this machine has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dnnsep.backends import BACKENDS
from dnnsep.host.machine import cpus_for
from dnnsep.host.unnamed import unnamed_file
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.client import Client, WorkerError

# The backends that measure the rates of ways of multiplying when they first prepare a problem.
_MEASURING = ("fused", "auto")


def explain(problem: Problem, backend: str, threads: int) -> dict[str, Any]:
    """Runs a problem in a process of its own; returns its check, stages, primitives and plans.

    ``setup`` holds the primitives of the preparation, ``hot`` those of a later call; ``reorders``
    counts the hot call's reorders; ``dots`` has the rates that the fused kernel chose by. Raises
    WorkerError if the backend crashes, cannot run the problem or is not available.
    """
    with Client(backend) as client, unnamed_file() as data:
        started = client.ask("start")
        if "unavailable" in started:
            raise WorkerError(f"not available: {started['unavailable']}")
        CheckData.exact(problem).save(data)
        answer = client.ask("prepare", problem=str(problem), cpus=cpus_for(threads), data=str(data))
    if "refused" in answer:
        raise WorkerError(f"refused: {answer['refused']}")
    return {
        "problem": str(problem),
        "backend": backend,
        "threads": threads,
        "versions": started,
        "reorders": sum(p["kind"] == "reorder" for p in answer["hot"]),
        "dots": _rates(problem) if answer["plans"] else {},
        **answer,
    }


def _rates(problem: Problem) -> dict[str, dict[str, float]]:
    """Returns the rates, by name, of the ways of multiplying that the fused kernel can choose from
    for a problem."""
    from dnnsep.codegen.dots import dots_for
    from dnnsep.codegen.lang.isa import this_isa
    from dnnsep.codegen.rates import rates

    isa = this_isa()
    return {dot.name: rates(isa).dots[dot.name].as_dict() for dot in dots_for(problem.dtype, isa)}


def survey() -> dict[str, dict[str, Any]]:
    """Starts each backend in a process of its own, at once; returns their answers by backend.

    An answer has ``unavailable`` with the reason where the backend cannot run here. Those that
    measure the machine for their kernels, and keep what they find, have it to themselves at the
    end.
    """
    at_once = [name for name in BACKENDS if name not in _MEASURING]
    with ThreadPoolExecutor(len(at_once)) as pool:
        answers = dict(zip(at_once, pool.map(_started, at_once), strict=True))
    answers |= {name: _started(name) for name in _MEASURING}
    return {name: answers[name] for name in BACKENDS}


def _started(name: str) -> dict[str, Any]:
    """Returns a backend's answer to being started, or under ``unavailable`` why there is none."""
    with Client(name) as client:
        try:
            return client.ask("start")
        except WorkerError as error:
            return {"unavailable": str(error)}
