"""The argument of an attention kernel."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.heads.special import MOST_BIASES
from dnnsep.codegen.lang.emit import F32, I64, Code
from dnnsep.codegen.task import load_field

TENSORS = ("q", "k", "v", "y", *(f"bias{number}" for number in range(MOST_BIASES)))
_STRIDES = ("batch", "head", "row")


@dataclass(frozen=True)
class Strides:
    """How many elements apart the batches, the heads and the rows of a tensor are. A row is a
    token, or a channel where the tensor is transposed; a bias has a row for each query. A bias that
    is the same for all has 0."""

    batch: int
    head: int
    row: int


class HeadsTask(ctypes.Structure):
    """What a kernel works on.

    ``q``, ``k``, ``v``, ``bias0`` and ``bias1`` are the addresses of the operands, ``y`` is that of
    the result; ``q_batch``, ``q_head`` and ``q_row`` are the Strides of q, and so on.
    """

    _fields_ = (
        *((tensor, ctypes.c_void_p) for tensor in TENSORS),
        ("batch", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("queries", ctypes.c_int64),
        ("keys", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        *((f"{tensor}_{stride}", ctypes.c_int64) for tensor in TENSORS for stride in _STRIDES),
        ("scale", ctypes.c_float),
    )


class Fields:
    """Emits reading a task's fields."""

    def __init__(self, code: Code, task: ir.Value) -> None:
        self._code, self._task = code, task

    def address(self, name: str) -> ir.Value:
        return load_field(self._code, HeadsTask, self._task, name)

    def count(self, name: str) -> ir.Value:
        return load_field(self._code, HeadsTask, self._task, name, I64)

    def number(self, name: str) -> ir.Value:
        return load_field(self._code, HeadsTask, self._task, name, F32)

    def row(self, tensor: str, batch: ir.Value, head: ir.Value, kind: ir.Type) -> ir.Value:
        """Returns the address of a head's first row in a tensor of elements of a type."""
        b = self._code.builder
        places = (
            b.mul(at, self.count(f"{tensor}_{name}"))
            for at, name in ((batch, "batch"), (head, "head"))
        )
        return self._code.at(self.address(tensor), b.add(*places), kind)
