"""Picks the backend that runs a problem fastest, by measuring; the executor says which and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dnnsep.backends.base import Backend, Verdict
from dnnsep.backends.eager import EagerBackend
from dnnsep.backends.fused import FusedBackend
from dnnsep.backends.ipex import IpexBackend
from dnnsep.backends.onednn import OneDNNBackend
from dnnsep.host import cachefiles
from dnnsep.host.packages import installed_version
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

# In the order of the rule: the first that is there and supports a problem runs it, unless another
# one is measured to be faster. Eager is for what no other one runs.
_EAGER = EagerBackend()
CANDIDATES: tuple[Backend, ...] = (FusedBackend(), IpexBackend(), OneDNNBackend(), _EAGER)

# What comparing the backends may take, beside preparing them; and the share by which another one
# than the first has to be faster.
_SECONDS = 0.3
_GAIN = 0.02


@dataclass(frozen=True)
class _Choice:
    """The name of a backend, and why it was chosen."""

    backend: str
    why: str


# What this process found, so that it does not measure again what it could not decide or keep.
_choices: dict[str, _Choice] = {}


@dataclass(frozen=True)
class AutoBackend:
    name: str = "auto"

    def available(self) -> Verdict:
        reasons = []
        for backend in CANDIDATES:
            verdict = backend.available()
            if verdict:
                return Verdict(True, f"{backend.name}: {verdict.reason}")
            reasons.append(f"{backend.name}: {verdict.reason}")
        return Verdict(False, "; ".join(reasons))

    def choose(self, problem: Problem) -> Backend:
        """Returns the first candidate that can run the problem, without measuring.

        Raises ValueError with every candidate's reason if there is none.
        """
        reasons = []
        for backend in CANDIDATES:
            verdict = _runs(backend, problem)
            if verdict:
                return backend
            reasons.append(f"{backend.name}: {verdict.reason}")
        raise ValueError("; ".join(reasons))

    def supports(self, problem: Problem) -> Verdict:
        try:
            first = self.choose(problem)
        except ValueError as error:
            return Verdict(False, str(error))
        others = "" if first == _EAGER else " or what is measured to be faster"
        return Verdict(True, f"runs on {first.name}{others}")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        return self.fastest(problem, lambda backend: backend.prepare(problem, weights))

    def fastest(
        self, problem: Problem, prepare: Callable[[Backend], Executor], tune: bool = True
    ) -> Executor:
        """Returns what ``prepare`` makes of the problem on the backend that runs it fastest, which
        is measured where no earlier process has, unless ``tune`` or DNNSEP_TUNE says no.

        Raises ValueError with every candidate's reason if there is no backend that can run it.
        """
        from dnnsep.codegen import tuner
        from dnnsep.host.turns import are_slowed

        first = self.choose(problem).name
        executors: dict[str, Executor] = {}
        if first == _EAGER.name:
            choice = _Choice(first, "no other one is there that runs it")
        elif not (tuner.wanted() and tune):
            off = "tuning is off" if tuner.wanted() else f"{tuner.VARIABLE}=0"
            choice = _Choice(first, f"by rule, {off}")
        elif (known := _known(key := _key(problem), problem)) is not None:
            choice = known
        elif are_slowed():
            choice = _Choice(first, "by rule, what runs now is slowed down")
        else:
            # Asking the others imports them, so they are asked only here.
            rivals = [b for b in CANDIDATES if b != _EAGER and _runs(b, problem)]
            executors = {backend.name: prepare(backend) for backend in rivals}
            choice = _compared(key, list(executors.values()))
        executor = executors.get(choice.backend) or prepare(_named(choice.backend))
        executor.why = f"runs on {choice.backend}: {choice.why}"
        return executor


def _named(name: str) -> Backend:
    return next(backend for backend in CANDIDATES if backend.name == name)


def _runs(backend: Backend, problem: Problem) -> Verdict:
    """Returns whether a backend is there and can run a problem."""
    verdict = backend.available()
    return verdict and backend.supports(problem)


def _compared(key: str, executors: Sequence[Executor]) -> _Choice:
    """Times the same problem on several backends in turns, and keeps what that decides."""
    from dnnsep.host.turns import affordable, measuring, short_turns

    first = executors[0]
    if len(executors) == 1:
        return _Choice(first.backend, "no other one is there that runs it")
    with measuring():
        if key in _choices:  # another thread has measured it meanwhile
            return _choices[key]
        # As users call it: each takes memory for its result.
        x = _random_input(first.problem)
        calls = [partial(executor, x) for executor in executors]
        enough = affordable(calls[0], _SECONDS) >= len(calls)
        turns = short_turns(calls, _SECONDS) if enough else None
        if turns is None:
            choice = _Choice(first.backend, "by rule, it takes too long to be measured")
        else:
            best = turns.best(_GAIN)
            # How many times as long the others took.
            ratios = {
                executor.backend: turns.ratio(number, best)
                for number, executor in enumerate(executors)
                if number != best
            }
            choice = _Choice(executors[best].backend, _why(first.backend, ratios, turns.quiet))
            if turns.quiet:
                cachefiles.save("auto", key, json.dumps(vars(choice)).encode())
        _choices[key] = choice
        return choice


def _why(first: str, ratios: dict[str, float], quiet: bool) -> str:
    """Returns why a backend was chosen that is so many times as fast as others, the one that comes
    first by the rule among them or not."""
    if first in ratios:
        why = f"{first} was measured {ratios[first]:.2f} times slower"
        return why if quiet else f"{why}, while the machine was not quiet"
    if not quiet:
        return "by rule, the machine was not quiet"
    other = min(ratios, key=lambda name: ratios[name])
    if ratios[other] < 1:
        return f"{other} was measured just {1 / ratios[other]:.2f} times as fast"
    return f"measured {ratios[other]:.2f} times as fast as {other}"


def _random_input(problem: Problem) -> Tensor:
    import numpy as np

    from dnnsep.backends.tensors import to_channels_last

    values = np.random.default_rng(0).random(problem.input_shape, np.float32)
    if problem.precision.quantized:
        values = values * 100
    return to_channels_last(values + np.float32(0.5), problem.dtype)


def _key(problem: Problem) -> str:
    """Returns what a choice is filed under: all that may change which backend is the fastest."""
    import torch

    from dnnsep.codegen.lang.isa import this_isa
    from dnnsep.codegen.lang.jit import this_cpu
    from dnnsep.codegen.rates import measured_on

    try:
        place = measured_on(this_isa())
    except (RuntimeError, ValueError):  # the fused kernel is not among the candidates
        place = str(this_cpu())
    engines = [installed_version(name) for name in ("torch", "intel-extension-for-pytorch")]
    return f"{place} {torch.get_num_threads()} {problem} {engines}"


def _known(key: str, problem: Problem) -> _Choice | None:
    """Returns the choice that was made before, by this process or another."""
    content = cachefiles.load("auto", key)
    try:
        choice = _Choice(**json.loads(content)) if content is not None else _choices.get(key)
    except (ValueError, TypeError):
        return None
    names = [backend.name for backend in CANDIDATES]
    if choice is None or choice.backend not in names:
        return None
    return choice if _runs(_named(choice.backend), problem) else None
