"""Programs of the fused kernel on torch's tensors.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dnnsep.backends.executor import TORCH_DTYPES, Executor
from dnnsep.codegen.choose import describe
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.program import Program, Step
from dnnsep.codegen.tuner import step_chosen_by
from dnnsep.problem import Problem
from dnnsep.weights import Weights


class FusedProgram:
    """Steps on torch's threads, from a channels-last tensor to a new one."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._program = Program(steps)
        problem = steps[-1].problem
        self._shape, self._dtype = torch.Size(problem.output_shape), TORCH_DTYPES[problem.dtype]
        layers = [layer_of(step.problem, step.plan.isa) for step in steps]
        dots = dict.fromkeys(layer.dot.name for layer in layers if layer.product is not None)
        self.impl = ":".join(["fused", steps[-1].plan.isa.name, *filter(None, ["+".join(dots)])])

    def run(self, x: Tensor, given: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Returns the last step's result for x, which fits the first step; ``given`` is what steps
        may read as GIVEN. All are channels-last; where ``out`` is given it is written into it."""
        y = self._empty() if out is None else out
        self._program.run(x.data_ptr(), 0 if given is None else given.data_ptr(), y.data_ptr())
        return y

    def bind(self, x: Tensor) -> Callable[[], Tensor]:
        """Returns a call, to be made from one thread, that runs on x into the same output."""
        y = self._empty()
        call = self._program.bound(x.data_ptr(), y.data_ptr())

        def bound(_kept: Tensor = x) -> Tensor:
            call()
            return y

        return bound

    def _empty(self) -> Tensor:
        return torch.empty(self._shape, dtype=self._dtype, memory_format=torch.channels_last)


class FusedExecutor(Executor):
    """A problem by a plan: a program of one step."""

    output = "bound beforehand"

    def __init__(self, step: Step) -> None:
        super().__init__("fused", step.problem, ())
        self.step, self.plan = step, step.plan
        self._threads = torch.get_num_threads()
        self._program = FusedProgram([step])
        self.impls = (self._program.impl,)

    @classmethod
    def of(cls, problem: Problem, weights: Weights, plan: Plan) -> FusedExecutor:
        """Returns the executor of a problem by this plan."""
        packing = Packing(layer_of(problem, plan.isa), plan.vectors)
        return cls(Step(problem, plan, packing.pack(weights)))

    def plans(self) -> list[dict[str, Any]]:
        chosen_by = step_chosen_by(self.step, self._threads)
        return describe(self.problem, self.plan, self._threads, chosen_by)

    def bind(self, x: Tensor) -> Callable[[], Tensor]:
        self._check("x", x, self._input_shape)
        return self._program.bind(x)

    def run(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._program.run(x, out=out)
