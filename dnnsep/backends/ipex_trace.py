"""To be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnnsep.backends.base import Verdict
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from dnnsep.backends.executor import Executor


@dataclass(frozen=True)
class IpexTraceBackend:
    name: str = "ipex-trace"

    def available(self) -> Verdict:
        return Verdict(False, "not written yet")

    def supports(self, problem: Problem) -> Verdict:
        raise NotImplementedError

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        raise NotImplementedError
