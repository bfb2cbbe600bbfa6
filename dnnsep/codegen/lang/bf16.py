"""Vectors of bf16 to and from f32."""

from __future__ import annotations

from llvmlite import ir

from dnnsep.codegen.lang.emit import F32, I16, I32, Code


def from_bf16(code: Code, halves: ir.Value) -> ir.Value:
    lanes = halves.type.count
    words = ir.VectorType(I32, lanes)
    bits = code.builder.shl(code.builder.zext(halves, words), code.splat(16, words))
    return code.builder.bitcast(bits, ir.VectorType(F32, lanes))


def to_bf16(code: Code, value: ir.Value, by_instruction: bool) -> ir.Value:
    """Rounded to nearest, ties to even; NaN stays NaN. ``by_instruction`` takes AVX512_BF16 and a
    whole register."""
    b, lanes = code.builder, value.type.count
    halves, words = ir.VectorType(I16, lanes), ir.VectorType(I32, lanes)
    if by_instruction:
        return code.instruction("vcvtneps2bf16 $1, $0", halves, value)
    bits = b.bitcast(value, words)
    odd = b.and_(b.lshr(bits, code.splat(16, words)), code.splat(1, words))
    rounded = b.add(b.add(bits, odd), code.splat(0x7FFF, words))
    quiet = b.or_(bits, code.splat(0x400000, words))
    chosen = b.select(b.fcmp_unordered("uno", value, value), quiet, rounded)
    return b.trunc(b.lshr(chosen, code.splat(16, words)), halves)
