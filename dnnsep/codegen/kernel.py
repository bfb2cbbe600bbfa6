"""Compiled kernels of problems: made once for a process, and kept on disk for the next one."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache

from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.separable import PLAIN, Extras, emit_separable, part_bytes
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles
from dnnsep.problem import Problem


@dataclass(frozen=True)
class Kernel:
    function: Function
    scratch_bytes: int

    @property
    def address(self) -> int:
        return self.function.address


# So many stay for the next executor; one that is in use stays with its executor.
@lru_cache(256)
def compiled(problem: Problem, plan: Plan, extras: Extras = PLAIN) -> Kernel:
    """Of a problem cut up by a plan, from the disk where it is there."""
    key = f"{generator()} {plan} {problem} {extras}"
    code = cachefiles.load("kernels", key)
    if code is None:
        code = machine_code(emit_separable(problem, plan, extras), plan.isa.target)
        cachefiles.save("kernels", key, code)
    function = Function(code, "run", [ctypes.c_void_p])
    return Kernel(function, plan.parts * part_bytes(problem, plan))
