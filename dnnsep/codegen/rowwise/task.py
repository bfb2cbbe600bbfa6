"""The argument of a row-wise kernel, and what all of them begin with."""

from __future__ import annotations

import ctypes

from llvmlite import ir

from dnnsep.codegen.lang.emit import I64, Code
from dnnsep.codegen.rowwise.expression import MOST_INPUTS
from dnnsep.codegen.task import load_field


class RowwiseTask(ctypes.Structure):
    """What a kernel works on.

    ``x0`` to ``x7`` are the addresses of the operands, in order; ``y`` is that of the result, which
    may be that of an operand of the same dtype and pitch, of pixels, too. The rows of an operand of
    pixels are ``pitch0`` to ``pitch7`` elements apart, those of the result ``y_pitch``.
    """

    _fields_ = (
        *((f"x{number}", ctypes.c_void_p) for number in range(MOST_INPUTS)),
        ("y", ctypes.c_void_p),
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
