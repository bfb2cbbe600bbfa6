"""The argument of a generated kernel: one structure, known to ctypes and to the generated code."""

from __future__ import annotations

import ctypes

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, I64, POINTER, Code

# What a generated kernel takes: the addresses of its task, the number of a part, and the address of
# memory that nobody else uses meanwhile.
KERNEL = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
KERNEL_TYPES = (POINTER, I64, POINTER)


class Task(ctypes.Structure):
    """Addresses of what a kernel works on.

    ``x`` and ``y`` are the input and the output, channels-last; ``packed`` the weights as a Packing
    lays them out. ``residual``, like y, and ``scale``, (N, C), are what a kernel made for them
    takes (see Extras). A tile is ``tile`` pieces and takes ``tile_bytes``.
    """

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("tile", ctypes.c_int64),
        ("tile_bytes", ctypes.c_int64),
    )


def load_field(
    code: Code,
    structure: type[ctypes.Structure],
    place: ir.Value,
    name: str,
    kind: ir.Type = POINTER,
) -> ir.Value:
    """Emits reading a field, of LLVM's type ``kind``, of a ctypes structure at an address."""
    return code.load(code.at(place, getattr(structure, name).offset, BYTE), kind)


def range_of(code: Code, part: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emits the first piece and the end of the range that the number of a part of a ranged plan
    is."""
    b = code.builder
    return b.and_(part, I64((1 << 32) - 1)), b.lshr(part, I64(32))


def share(
    code: Code, total: ir.Value, number: ir.Value, parts: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Emits the first and the end of the number-th of so many equal shares of a total."""
    b = code.builder
    first, last = (b.sdiv(b.mul(n, total), parts) for n in (number, b.add(number, I64(1))))
    return first, last
