"""Google's XNNPACK, as LiteRT (once TensorFlow Lite) runs it: the CPU delegate of its interpreter.

XNNPACK computes in NHWC, fuses ReLU and ReLU6 into its convolutions and takes padding of any four
sides into them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnsep.backends.base import Verdict
from dnnsep.backends.versions import installed_version
from dnnsep.problem import Problem
from dnnsep.weights import Array, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

# An activation as the convolution's own; the rest are operators of their own.
_FUSED = {"relu": "RELU", "relu6": "RELU6"}


@dataclass(frozen=True)
class XnnpackBackend:
    name: str = "xnnpack"

    def available(self) -> Verdict:
        for distribution in ("ai-edge-litert", "flatbuffers"):
            if installed_version(distribution) is None:
                return Verdict(False, f"{distribution} is not installed (extra: peers)")
        return Verdict(True, f"ai-edge-litert {installed_version('ai-edge-litert')}")

    def supports(self, problem: Problem) -> Verdict:
        if problem.dtype == "bf16":
            return Verdict(False, "LiteRT and XNNPACK have no bf16 convolutions")
        # What is delegated does not depend on the weights' values.
        if not _delegated(_interpreter(_model(problem, _no_weights(problem)))):
            return Verdict(False, "XNNPACK does not take every operator of the layer")
        return Verdict(True, "XNNPACK takes every operator of the layer")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import torch

        from dnnsep.backends.executor import EngineExecutor

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        weights.check(problem)
        threads = torch.get_num_threads()
        graph = _graph(problem, weights)
        model = _model(graph)

        def bind(x: Tensor) -> Callable[[], Tensor]:
            interpreter = _interpreter(model, threads)
            (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
            _memory(interpreter, source["index"]).copy_(x.permute(0, 2, 3, 1))
            y = _memory(interpreter, result["index"]).permute(0, 3, 1, 2)
            invoke = interpreter.invoke

            def call() -> Tensor:
                invoke()
                return y

            return call

        return EngineExecutor(
            self.name, problem, bind, [f"{op.lower()}:xnnpack" for op in graph.operators]
        )
