"""The argument of a row-wise kernel, and what all of them begin with."""

from __future__ import annotations

import ctypes

from llvmlite import ir

from dnnsep.codegen.lang.emit import I32, I64, POINTER, Code
from dnnsep.codegen.rowwise.expression import MOST_INPUTS
from dnnsep.codegen.task import load_field


class RowwiseTask(ctypes.Structure):
    """What a kernel works on.

    ``x0`` to ``x7`` are the addresses of the operands, in order; ``y`` is that of the result, which
    may be that of an operand of the same dtype and pitch, of pixels, too. The rows of an operand of
    pixels are ``pitch0`` to ``pitch7`` elements apart, those of the result ``y_pitch``.
    ``thread_number`` and ``thread_count`` are OpenMP's functions that tell a thread its number and
    its team's size.
    """

    _fields_ = (
        *((f"x{number}", ctypes.c_void_p) for number in range(MOST_INPUTS)),
        ("y", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("thread_number", ctypes.c_void_p),
        ("thread_count", ctypes.c_void_p),
        ("images", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("y_pitch", ctypes.c_int64),
        *((f"pitch{number}", ctypes.c_int64) for number in range(MOST_INPUTS)),
    )


class Fields:
    """Emits reading a task's fields."""

    def __init__(self, code: Code, task: ir.Value) -> None:
        self._code, self._task = code, task

    def address(self, name: str) -> ir.Value:
        return load_field(self._code, RowwiseTask, self._task, name)

    def count(self, name: str) -> ir.Value:
        return load_field(self._code, RowwiseTask, self._task, name, I64)


def emit_run(module: ir.Module, part: ir.Function) -> None:
    """Emits ``run(task)``, which a team of threads calls at once: each calls ``part(task, number)``
    for every n-th part, so that a team of any size does all of them."""
    code = Code(module, "run", [POINTER])
    (task,), b = code.arguments, code.builder
    fields = Fields(code, task)
    number, count = (fields.address(name) for name in ("thread_number", "thread_count"))
    mine, team = (b.sext(code.call_address(f, [], I32), I64) for f in (number, count))

    def one(at: ir.Value) -> None:
        b.call(part, [task, at])

    code.for_each(mine, fields.count("parts"), one, step=team)
    code.end()


def share(
    code: Code, total: ir.Value, number: ir.Value, parts: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Emits the first and the end of the number-th of so many equal shares of a total."""
    b = code.builder
    first, last = (b.sdiv(b.mul(n, total), parts) for n in (number, b.add(number, I64(1))))
    return first, last
