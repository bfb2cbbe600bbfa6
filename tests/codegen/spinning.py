"""A kernel that does nothing for some time, for tests of how threads share work."""

from __future__ import annotations

from llvmlite import ir

from dnnsep.codegen.lang.emit import I64, Code
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.task import KERNEL, KERNEL_TYPES


def spinning(cycles: int, counts: bool = False) -> Function:
    """Returns a kernel whose every part takes so many cycles of the clock counter; with ``counts``
    it adds 1 to the number of 64 bits that its thread's scratch memory begins with."""
    module = ir.Module()
    module.triple = ""
    code = Code(module, "spin", KERNEL_TYPES)
    b = code.builder
    start = code.call("llvm.readcyclecounter", I64)
    again, end = (code.function.append_basic_block() for _ in range(2))
    b.branch(again)
    b.position_at_end(again)
    spent = b.sub(code.call("llvm.readcyclecounter", I64), start)
    b.cbranch(b.icmp_signed("<", spent, I64(cycles)), again, end)
    b.position_at_end(end)
    if counts:
        *_, scratch = code.arguments
        code.store(b.add(code.load(scratch, I64), I64(1)), scratch)
    code.end()
    return Function(machine_code(module), "spin", KERNEL)
