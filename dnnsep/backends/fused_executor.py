"""Programs of the fused kernel on torch's tensors.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dnnsep.backends.executor import OUTPUT_DTYPES, Executor
from dnnsep.codegen.choose import describe
from dnnsep.codegen.generalstep import GeneralStep
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.program import GIVEN, INPUT, OUTPUT, Program
from dnnsep.codegen.tuner import step_chosen_by
from dnnsep.problem import Problem
from dnnsep.weights import Weights


class FusedProgram:
    """A step on torch's threads, from a channels-last tensor to a new one."""

    def __init__(self, step: LayerStep) -> None:
        self._program = Program([step.alone()])
        problem = step.problem
        self._shape, self._dtype = torch.Size(problem.output_shape), OUTPUT_DTYPES[problem.dtype]
        self.impl = impl_name([step])

    def run(self, x: Tensor, given: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Returns the step's result for x; ``given`` is the residual of a step that has one. All
        are channels-last; where ``out`` is given the result is written into it."""
        y = self._empty() if out is None else out
        addresses = {INPUT: x.data_ptr(), OUTPUT: y.data_ptr()}
        if given is not None:
            addresses[GIVEN] = given.data_ptr()
        self._program.run(addresses)
        return y

    def bind(self, x: Tensor) -> Callable[[], Tensor]:
        """Returns a call, to be made from one thread, that runs on x into the same output."""
        y = self._empty()
        call = self._program.bound({INPUT: x.data_ptr(), OUTPUT: y.data_ptr()})

        # Code, weights and memory are known by their addresses only: the call keeps them.
        def bound(_kept: object = (x, self)) -> Tensor:
            call()
            return y

        return bound

    def _empty(self) -> Tensor:
        return torch.empty(self._shape, dtype=self._dtype, memory_format=torch.channels_last)


def impl_name(steps: Sequence[LayerStep | GeneralStep]) -> str:
    """Returns the name of what runs steps: the instructions and the ways of multiplying."""
    layers = [step.layer for step in steps]
    dots = dict.fromkeys(layer.dot.name for layer in layers if layer.product is not None)
    return ":".join(["fused", layers[-1].isa.name, *filter(None, ["+".join(dots)])])


class FusedExecutor(Executor):
    """A problem by a plan: a program of one step."""

    output = "bound beforehand"

    def __init__(self, step: LayerStep) -> None:
        super().__init__("fused", step.problem, ())
        self.step, self.plan = step, step.plan
        self._threads = torch.get_num_threads()
        self._program = FusedProgram(step)
        self.impls = (self._program.impl,)

    @classmethod
    def of(cls, problem: Problem, weights: Weights, plan: Plan) -> FusedExecutor:
        """Returns the executor of a problem by this plan."""
        packing = Packing(layer_of(problem, plan.isa), plan.vectors)
        return cls(LayerStep(problem, plan, packing.pack(weights)))

    def plans(self) -> list[dict[str, Any]]:
        chosen_by = step_chosen_by(self.step, self._threads)
        return describe(self.problem, self.plan, self._threads, chosen_by)

    def bind(self, x: Tensor) -> Callable[[], Tensor]:
        self._check_input(x)
        return self._program.bind(x)

    def run(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._program.run(x, out=out)
