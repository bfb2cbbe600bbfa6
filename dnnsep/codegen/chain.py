"""Several kernels one after the other, by one team of threads."""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from dnnsep.codegen.lang.emit import I64, POINTER, VOID, Code
from dnnsep.codegen.lang.jit import Function, machine_code

# What the chain's one argument points to: (function, task) pairs, their number, and the team's
# barrier.
CHAIN_FIELDS = ("steps", "count", "barrier")


@cache
def chain_function() -> Function:
    """``chain(fields)``, which a team of threads calls at once: each step by all of them, and the
    next only when all are done."""
    return Function(machine_code(_emit()), "chain", [ctypes.c_void_p])


def _emit() -> ir.Module:
    module = ir.Module()
    module.triple = ""
    code = Code(module, "chain", [POINTER])
    (fields,) = code.arguments
    steps = code.load(code.at(fields, 0, POINTER), POINTER)
    count = code.load(code.at(fields, 1, I64), I64)
    barrier = code.load(code.at(fields, 2, POINTER), POINTER)

    def one(step: ir.Value) -> None:
        pair = code.at(steps, code.builder.mul(step, I64(2)), POINTER)
        function, task = (code.load(code.at(pair, i, POINTER), POINTER) for i in range(2))
        code.call_address(function, [task], VOID)
        code.call_address(barrier, [], VOID)

    code.for_each(I64(0), count, one)
    code.end()
    return module
