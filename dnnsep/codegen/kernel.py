"""Compiled kernels of problems, each compiled once in a process."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

from dnnsep.codegen.jit import Function
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.separable import emit_separable, part_bytes
from dnnsep.problem import Problem


@dataclass(frozen=True)
class Kernel:
    function: Function
    scratch_bytes: int

    @property
    def address(self) -> int:
        return self.function.address


@cache
def compiled(problem: Problem, plan: Plan) -> Kernel:
    module = emit_separable(problem, plan)
    function = Function(module, "run", [ctypes.c_void_p], plan.isa.cpu, plan.isa.features)
    return Kernel(function, plan.parts * part_bytes(problem, plan))
