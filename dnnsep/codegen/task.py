"""The argument of a generated kernel: one structure, known to ctypes and to the generated code."""

from __future__ import annotations

import ctypes

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, POINTER, Code


class Task(ctypes.Structure):
    """Addresses of what a kernel works on.

    ``x`` and ``y`` are the input and the output, channels-last; ``packed`` the weights as a Packing
    lays them out; ``scratch`` memory for the parts' tiles. ``thread_number`` and ``thread_count``
    are OpenMP's functions that tell a thread its number and its team's size. ``residual``, like y,
    and ``scale``, (N, C), are what a kernel made for them takes (see Extras). A tile is ``tile``
    pieces and takes ``tile_bytes``, and each part has ``part_bytes`` of the scratch memory.
    """

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("thread_number", ctypes.c_void_p),
        ("thread_count", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("tile", ctypes.c_int64),
        ("tile_bytes", ctypes.c_int64),
        ("part_bytes", ctypes.c_int64),
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
