"""Powers of 2, which take fewer operations than those of e; scores are scaled to match."""

from __future__ import annotations

import math

from llvmlite import ir

from dnnsep.codegen.lang.emit import I32, Code

# What scores are multiplied by, so that their powers of 2 are what those of e were.
LOG2_E = math.log2(math.e)

# Below -125.5 powers are taken as 0.
_LEAST = -126.0
# 2^r for |r| <= 1/2, fitted so that the largest relative error, 9.2e-8, was least; exact at 0.
_TERMS = (
    0.001326472712388828,
    0.009671512644839985,
    0.05550733743496317,
    0.24022242085262022,
    0.693146977598994,
    1.0,
)
# Adding it rounds a small number to a whole one, which then is in the last bits of the sum; 126
# more than it is the exponent's bits of half that power of 2.
_ROUNDER = 1.5 * 2**23 + 126


def power_of_2(code: Code, x: ir.Value) -> ir.Value:
    """Returns 2 to the power x, a vector of numbers that are at most 0; NaN of NaN."""
    b, kind = code.builder, x.type
    words = ir.VectorType(I32, kind.count)
    least, rounder = code.splat(_LEAST, kind), code.splat(_ROUNDER, kind)
    near = b.select(b.fcmp_ordered(">", least, x), least, x)
    rounded = b.fadd(near, rounder)
    rest = b.fsub(near, b.fsub(rounded, rounder))
    half = b.bitcast(b.shl(b.bitcast(rounded, words), code.splat(23, words)), kind)
    value = code.splat(2 * _TERMS[0], kind)
    for term in _TERMS[1:]:
        value = code.fma(value, rest, code.splat(2 * term, kind))
    return b.fmul(value, half)
