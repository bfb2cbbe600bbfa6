"""The layer as one torch module compiled by TorchInductor: what a torch user does first.

Freezing turns the weights into constants, which inductor packs for oneDNN ahead of time;
convolutions and linear layers with their activations then run as oneDNN primitives, with post-ops.
Everything else, such as one-sided padding or a mean, becomes a C++ kernel, so a compiler is needed
where it runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dnnsep.backends.base import Verdict, unquantized_verdict
from dnnsep.backends.onednn_faults import grouped_verdict
from dnnsep.backends.versions import torch_verdict
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, fx

    from dnnsep.backends.executor import Executor

CONFIG: dict[str, Any] = {
    "freezing": True,
    # Saves most of the Python between two primitives.
    "cpp_wrapper": True,
    # Torch 2.8's key lacks the number of threads, which the generated kernels have built in.
    "fx_graph_cache": False,
    # No worker processes beside a measurement; there is at most a kernel or two to compile.
    "compile_threads": 1,
}


@dataclass(frozen=True)
class InductorBackend:
    name: str = "inductor"

    def available(self) -> Verdict:
        torch_ok = torch_verdict()
        if not torch_ok:
            return torch_ok
        compiler = os.environ.get("CXX", "g++")  # as inductor itself looks for it
        if shutil.which(compiler) is None:
            return Verdict(False, f"no C++ compiler: {compiler} is not found (CXX names another)")
        return Verdict(True, f"{torch_ok.reason}, {compiler}")

    def supports(self, problem: Problem) -> Verdict:
        known = unquantized_verdict(problem, "inductor")
        if not known:
            return known
        return convolutions_verdict(problem)

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        import torch
        from torch import fx

        from dnnsep.backends.executor import TORCH_DTYPES, Executor, Stage
        from dnnsep.backends.peers.module import module_of
        from dnnsep.backends.tensors import channels_last, keep_channels_last

        # A traced module has code of its own: no other problem counts against its recompilations.
        module = fx.symbolic_trace(module_of(problem, weights))
        compiled = torch.compile(
            module.forward, backend=_compile_frozen, fullgraph=True, dynamic=False
        )
        x = channels_last(torch.zeros(problem.input_shape, dtype=TORCH_DTYPES[problem.dtype]))
        size, stride = x.shape, x.stride()
        with torch.no_grad(), torch._inductor.config.patch(CONFIG):
            compiled(x)

        def layer(x: Tensor) -> Tensor:
            # Torch's guards compare even the strides of axes of size 1, which mean nothing.
            y: Tensor = compiled(x.as_strided(size, stride))
            return y

        run = keep_channels_last(layer, problem.input_shape)
        return Executor(self.name, problem, [Stage(problem.kind, run)])


def convolutions_verdict(problem: Problem) -> Verdict:
    """Returns whether oneDNN has kernels for torch's convolutions, none known to be at fault."""
    import torch

    if not torch._C._has_mkldnn:
        return Verdict(False, "this torch was built without oneDNN")
    if problem.dtype == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Verdict(False, "oneDNN has no bf16 kernels for this CPU (AVX-512 is needed)")
    return grouped_verdict(problem)


def _compile_frozen(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Compile within ``prepare`` only: later on the weights would not be constants any more."""
    import torch
    from torch._inductor.compile_fx import compile_fx

    if not torch._inductor.config.freezing:
        raise RuntimeError("torch's number of threads or a mode of it changed: prepare it again")
    compiled: Any = compile_fx(graph, inputs)
    return cast("Callable[..., Any]", compiled)
