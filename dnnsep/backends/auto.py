"""Picks the best backend that is there and supports the problem; the executor says which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnnsep.backends.base import Backend, Verdict
from dnnsep.backends.eager import EagerBackend
from dnnsep.backends.fused import FusedBackend
from dnnsep.backends.ipex import IpexBackend
from dnnsep.backends.onednn import OneDNNBackend
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from dnnsep.backends.executor import Executor

# Best first; the verdict of ``available`` comes from the first that is there.
CANDIDATES: tuple[Backend, ...] = (
    FusedBackend(),
    IpexBackend(),
    OneDNNBackend(),
    EagerBackend(),
)


def _best_first(problem: Problem) -> tuple[Backend, ...]:
    """Returns the candidates with fused first, but for separable layers that oneDNN was measured
    to run faster: the depthwise stage is most of the work and its kernel too wide for a row of bf16
    taps to be kept in registers as f32."""
    wide = problem.kind == "separable" and problem.dtype == "bf16" and problem.kernel[1] > 8
    if wide and problem.kernel[0] * problem.kernel[1] > problem.out_channels:
        fused, *others, last = CANDIDATES
        return (*others, fused, last)
    return CANDIDATES


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
        """Returns the first candidate that can run the problem.

        Raises ValueError with every candidate's reason if there is none.
        """
        reasons = []
        for backend in _best_first(problem):
            verdict = backend.available()
            verdict = verdict and backend.supports(problem)
            if verdict:
                return backend
            reasons.append(f"{backend.name}: {verdict.reason}")
        raise ValueError("; ".join(reasons))

    def supports(self, problem: Problem) -> Verdict:
        try:
            return Verdict(True, f"runs on {self.choose(problem).name}")
        except ValueError as error:
            return Verdict(False, str(error))

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        return self.choose(problem).prepare(problem, weights)
