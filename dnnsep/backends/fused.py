"""All stages in one pass, by kernels generated for the problem and this CPU (see codegen).

Of a separable layer the depthwise stage of a run of output pixels goes into a tile that stays in
the inner caches and is multiplied there by the packed pointwise weights: the tensor between the
stages is never in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnnsep.backends.base import Verdict
from dnnsep.backends.versions import torch_verdict, x86_verdict
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from dnnsep.backends.executor import Executor


@dataclass(frozen=True)
class FusedBackend:
    name: str = "fused"

    def available(self) -> Verdict:
        x86 = x86_verdict()
        return torch_verdict() if x86 else x86

    def supports(self, problem: Problem) -> Verdict:
        from dnnsep.codegen.lang.isa import this_isa, why_no_tiles
        from dnnsep.codegen.layer import layer_of
        from dnnsep.codegen.team import openmp
        from dnnsep.codegen.tuner import wanted

        try:
            wanted()
            isa = this_isa()
            openmp()
            layer_of(problem, isa)
        except (RuntimeError, ValueError, OSError) as error:
            return Verdict(False, str(error))
        refused = why_no_tiles()
        reason = f"generated for {isa.name}"
        return Verdict(True, f"{reason}; {refused}" if refused else reason)

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import torch

        from dnnsep.backends.fused_executor import FusedExecutor
        from dnnsep.codegen.layerstep import chosen_step

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        weights.check(problem)
        threads = torch.get_num_threads()
        return FusedExecutor(chosen_step(problem, lambda by: by.pack(weights), threads))
