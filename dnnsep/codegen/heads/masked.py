"""Vectors of which only some lanes are there, how many being known at run time."""

from __future__ import annotations

from llvmlite import ir

from dnnsep.codegen.lang.dtype import Element
from dnnsep.codegen.lang.emit import F32, I16, I32, Code


def first_lanes(code: Code, count: ir.Value, lanes: int) -> ir.Value:
    """Returns the mask of the first so many lanes of a vector: all of them from ``lanes`` on."""
    b = code.builder
    numbers = ir.Constant(ir.VectorType(I32, lanes), [I32(lane) for lane in range(lanes)])
    return b.icmp_signed("<", numbers, code.broadcast(b.trunc(count, I32), lanes))


def load(code: Code, element: Element, place: ir.Value, mask: ir.Value) -> ir.Value:
    """Returns neighbouring elements as f32; those outside the mask are not read, and zero."""
    return element.widened(code, load_raw(code, element, place, mask))


def load_raw(code: Code, element: Element, place: ir.Value, mask: ir.Value) -> ir.Value:
    """Returns neighbouring elements as they are; those outside the mask are not read, and zero."""
    lanes = mask.type.count
    kind = ir.VectorType(element.type, lanes)
    size, name = {F32: (4, "f32"), I16: (2, "i16")}[element.type]
    arguments = (place, I32(size), mask, ir.Constant(kind, None))
    return code.call(f"llvm.masked.load.v{lanes}{name}.p0", kind, *arguments)
