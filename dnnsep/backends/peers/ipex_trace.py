"""The layer as one torch module through IPEX's optimizer and TorchScript, as IPEX's guide says.

``ipex.optimize`` packs the weights for oneDNN, and freezing the trace fuses the activations into
the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from dnnsep.backends.base import Verdict, unquantized_verdict
from dnnsep.backends.peers.inductor import convolutions_verdict
from dnnsep.backends.versions import ipex_verdict, x86_verdict
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from dnnsep.backends.executor import Executor

# TorchScript profiles the first calls and optimizes afterwards.
_WARM_UP_CALLS = 3


@dataclass(frozen=True)
class IpexTraceBackend:
    name: str = "ipex-trace"

    def available(self) -> Verdict:
        x86 = x86_verdict()
        return ipex_verdict() if x86 else x86

    def supports(self, problem: Problem) -> Verdict:
        known = unquantized_verdict(problem, "IPEX")
        if not known:
            return known
        _import_ipex()
        return convolutions_verdict(problem)

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        import torch

        from dnnsep.backends.executor import TORCH_DTYPES, Executor, Stage
        from dnnsep.backends.peers.module import module_of
        from dnnsep.backends.tensors import channels_last, keep_channels_last

        dtype = TORCH_DTYPES[problem.dtype]
        x = channels_last(torch.zeros(problem.input_shape, dtype=dtype))
        with torch.no_grad():
            module = _import_ipex().optimize(
                module_of(problem, weights), dtype=dtype, sample_input=x
            )
            trace: Callable[..., Any] = torch.jit.trace
            traced = torch.jit.freeze(trace(module, x))
            for _ in range(_WARM_UP_CALLS):
                traced(x)
        run = keep_channels_last(traced, problem.input_shape)
        return Executor(self.name, problem, [Stage(problem.kind, run)])


@cache
def _import_ipex() -> Any:
    import intel_extension_for_pytorch

    return intel_extension_for_pytorch
