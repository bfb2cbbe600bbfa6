"""What runs a part of a cascade: one small generated function, the same for all of them."""

from __future__ import annotations

import ctypes
from functools import cache

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, I64, POINTER, VOID, Code
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.task import KERNEL, KERNEL_TYPES, Task, load_field

# Where an operand of a call may lie: in a tensor of the cascade's, or in the thread's memory.
X, Y, RESIDUAL, OWN = range(4)
# The operands of a layer's task that a call sets.
SET = ("x", "y", "residual")
_VECTOR = 64


class CascadeTask(ctypes.Structure):
    """Addresses of what a cascade works on: its input, its output, the residual of its last layer;
    the calls, ``ends[n]`` being the number of them up to the end of part n; and how many bytes of a
    thread's memory are rolling buffers."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("calls", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
    )


class Call(ctypes.Structure):
    """A part of a layer, by the address of its kernel and that of a task of its own, whose operands
    are so many bytes from the beginning of what ``…_from`` says. Where there is no kernel, ``part``
    bytes are moved from x to y."""

    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("task", ctypes.c_void_p),
        ("part", ctypes.c_int64),
        *((f"{name}_from", ctypes.c_int64) for name in SET),
        *((name, ctypes.c_int64) for name in SET),
    )


@cache
def driver() -> Function:
    """Returns the kernel of every cascade."""
    module = ir.Module()
    module.triple = ""
    code = Code(module, "run", KERNEL_TYPES)
    (task, part, scratch), b = code.arguments, code.builder
    bases = code.stack(8 * (OWN + 1))
    for number, name in ((X, "x"), (Y, "y"), (RESIDUAL, "residual")):
        code.store(load_field(code, CascadeTask, task, name), code.at(bases, number, POINTER))
    code.store(scratch, code.at(bases, OWN, POINTER))
    calls, ends = (load_field(code, CascadeTask, task, name) for name in ("calls", "ends"))
    own = code.at(scratch, load_field(code, CascadeTask, task, "bytes", I64), BYTE)

    def one(number: ir.Value) -> None:
        call = code.at(calls, b.mul(number, I64(ctypes.sizeof(Call))), BYTE)
        kernel, of_call, asked = (
            load_field(code, Call, call, name, kind)
            for name, kind in (("kernel", POINTER), ("task", POINTER), ("part", I64))
        )
        places = {}
        for name in SET:
            base = load_field(code, Call, call, f"{name}_from", I64)
            start = code.load(code.at(bases, base, POINTER), POINTER)
            places[name] = code.at(start, load_field(code, Call, call, name, I64), BYTE)
        is_move = b.icmp_unsigned("==", b.ptrtoint(kernel, I64), I64(0))
        with b.if_else(is_move) as (yes, no):
            with yes:
                _move(code, places["x"], places["y"], asked)
            with no:
                for name, place in places.items():
                    code.store(place, code.at(of_call, getattr(Task, name).offset, BYTE))
                code.call_address(kernel, [of_call, asked, own], VOID)

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
