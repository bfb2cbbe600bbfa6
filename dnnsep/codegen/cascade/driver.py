"""What runs a part of a cascade: one small generated function, the same for all of them."""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, I64, POINTER, VOID, Code
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.task import KERNEL, KERNEL_TYPES, load_field

# A cascade's operands beside its output, at most.
MOST_OPERANDS = 12
_VECTOR = 64


class CascadeTask(ctypes.Structure):
    """Addresses of what a cascade works on: its output and its other operands, in order; the calls,
    ``ends[n]`` being the number of them up to the end of part n; and how many bytes of a thread's
    memory are rolling buffers."""

    _fields_ = (
        ("y", ctypes.c_void_p),
        *((f"x{number}", ctypes.c_void_p) for number in range(MOST_OPERANDS)),
        ("calls", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
    )


# What a setting is from: the thread's memory, or an operand of the cascade.
OWN = MOST_OPERANDS + 1
FROM = {"y": 0, **{f"x{number}": number + 1 for number in range(MOST_OPERANDS)}}


class Setting(ctypes.Structure):
    """The address of a task's operand becomes that of what FROM says, and so many bytes more."""

    _fields_ = (
        ("field", ctypes.c_void_p),
        ("base", ctypes.c_int64),
        ("offset", ctypes.c_int64),
    )


class Call(ctypes.Structure):
    """A part of a member, by the address of its kernel and that of a task of its own, whose
    operands are set first. Where there is no kernel, ``part`` bytes of the thread's memory are
    moved from ``source`` to ``target``."""

    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("task", ctypes.c_void_p),
        ("part", ctypes.c_int64),
        ("settings", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("source", ctypes.c_int64),
        ("target", ctypes.c_int64),
    )


@cache
def driver() -> Function:
    """Returns the kernel of every cascade."""
    module = ir.Module()
    module.triple = ""
    code = Code(module, "run", KERNEL_TYPES)
    (task, part, scratch), b = code.arguments, code.builder
    bases = code.stack(8 * (OWN + 1))
    for name, number in FROM.items():
        code.store(load_field(code, CascadeTask, task, name), code.at(bases, number, POINTER))
    code.store(scratch, code.at(bases, OWN, POINTER))
    calls, ends = (load_field(code, CascadeTask, task, name) for name in ("calls", "ends"))
    own = code.at(scratch, load_field(code, CascadeTask, task, "bytes", I64), BYTE)

    def number_of(structure: type[ctypes.Structure], place: ir.Value, name: str) -> ir.Value:
        return load_field(code, structure, place, name, I64)

    def one(number: ir.Value) -> None:
        call = code.at(calls, b.mul(number, I64(ctypes.sizeof(Call))), BYTE)
        kernel, of_call, settings = (
            load_field(code, Call, call, name) for name in ("kernel", "task", "settings")
        )
        part = number_of(Call, call, "part")

        def set_one(index: ir.Value) -> None:
            setting = code.at(settings, b.mul(index, I64(ctypes.sizeof(Setting))), BYTE)
            start = code.load(code.at(bases, number_of(Setting, setting, "base"), POINTER), POINTER)
            place = code.at(start, number_of(Setting, setting, "offset"), BYTE)
            code.store(place, load_field(code, Setting, setting, "field"))

        with b.if_else(b.icmp_unsigned("==", b.ptrtoint(kernel, I64), I64(0))) as (yes, no):
            with yes:
                source, target = (
                    code.at(scratch, number_of(Call, call, name), BYTE)
                    for name in ("source", "target")
                )
                _move(code, source, target, part)
            with no:
                code.for_each(I64(0), number_of(Call, call, "count"), set_one)
                code.call_address(kernel, [of_call, part, own], VOID)

    first = code.load(code.at(ends, part, I64), I64)
    end = code.load(code.at(ends, b.add(part, I64(1)), I64), I64)
    code.for_each(first, end, one)
    code.end()
    return Function(machine_code(module), "run", KERNEL)


def _move(code: Code, source: ir.Value, target: ir.Value, count: ir.Value) -> None:
    """Emits moving bytes to where they are before: vectors, then what is left."""
    b, kind = code.builder, ir.VectorType(BYTE, _VECTOR)
    whole = b.and_(count, I64(-_VECTOR))
    for first, end, of in ((I64(0), whole, kind), (whole, count, BYTE)):

        def one(at: ir.Value, of: ir.Type = of) -> None:
            code.store(code.load(code.at(source, at, BYTE), of), code.at(target, at, BYTE))

        code.for_each(first, end, one, step=I64(_VECTOR if of is kind else 1))
