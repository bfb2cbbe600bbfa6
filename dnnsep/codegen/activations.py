"""The activations on a vector of f32, with NaN and infinity as IEEE arithmetic has them."""

from __future__ import annotations

from llvmlite import ir

from dnnsep.codegen.emit import I32, Code

# Cody and Waite's split of ln 2: the first part has few bits, so that a whole number times it is
# exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOG2_E = 1.44269504088896341
_EXP_LIMIT = 88.0
_EXP_TERMS = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| <= 1.5e-7.
_ERF_P = 0.3275911
_ERF_TERMS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


# Those whose code is too long to be written out for each vector.
LONG = ("silu", "gelu")


def activate(code: Code, name: str, x: ir.Value) -> ir.Value:
    b, kind = code.builder, x.type

    def number(value: float) -> ir.Value:
        return code.splat(value, kind)

    if name == "none":
        return x
    if name == "relu":
        return _at_least(code, x, 0.0)
    if name == "relu6":
        return _at_most(code, _at_least(code, x, 0.0), 6.0)
    if name == "hardswish":
        inner = _at_most(code, _at_least(code, b.fadd(x, number(3.0)), 0.0), 6.0)
        return b.fmul(b.fmul(x, inner), number(1 / 6))
    if name == "silu":
        return b.fdiv(x, b.fadd(number(1.0), _exp(code, b.fneg(x))))
    if name == "gelu":
        error = _erf(code, b.fmul(x, number(0.5**0.5)))
        return b.fmul(b.fmul(x, number(0.5)), b.fadd(number(1.0), error))
    raise ValueError(f"activation {name!r}")


def _at_least(code: Code, x: ir.Value, limit: float) -> ir.Value:
    """The larger one; NaN where x is: the comparison is false then."""
    bound = code.splat(limit, x.type)
    return code.builder.select(code.builder.fcmp_ordered(">", bound, x), bound, x)


def _at_most(code: Code, x: ir.Value, limit: float) -> ir.Value:
    bound = code.splat(limit, x.type)
    return code.builder.select(code.builder.fcmp_ordered("<", bound, x), bound, x)


def _exp(code: Code, x: ir.Value) -> ir.Value:
    b, kind = code.builder, x.type
    whole = ir.VectorType(I32, kind.count)
    near = _at_most(code, _at_least(code, x, -_EXP_LIMIT), _EXP_LIMIT)
    power = code.intrinsic("llvm.rint", b.fmul(near, code.splat(_LOG2_E, kind)))
    rest = code.fma(power, code.splat(-_LN2_HIGH, kind), near)
    rest = code.fma(power, code.splat(-_LN2_LOW, kind), rest)
    value: ir.Value = code.splat(_EXP_TERMS[0], kind)
    for term in _EXP_TERMS[1:]:
        value = code.fma(value, rest, code.splat(term, kind))
    biased = b.add(b.fptosi(power, whole), code.splat(127, whole))
    scale = b.bitcast(b.shl(biased, code.splat(23, whole)), kind)
    value = b.fmul(value, scale)
    infinity = code.splat(float("inf"), kind)
    value = b.select(b.fcmp_ordered(">", x, code.splat(_EXP_LIMIT, kind)), infinity, value)
    zero = code.splat(0.0, kind)
    return b.select(b.fcmp_ordered("<", x, code.splat(-_EXP_LIMIT, kind)), zero, value)


def _erf(code: Code, x: ir.Value) -> ir.Value:
    b, kind = code.builder, x.type
    size = code.intrinsic("llvm.fabs", x)
    one = code.splat(1.0, kind)
    t = b.fdiv(one, code.fma(size, code.splat(_ERF_P, kind), one))
    value: ir.Value = code.splat(_ERF_TERMS[0], kind)
    for term in _ERF_TERMS[1:]:
        value = code.fma(value, t, code.splat(term, kind))
    tail = b.fmul(b.fmul(value, t), _exp(code, b.fneg(b.fmul(x, x))))
    return code.intrinsic("llvm.copysign", b.fsub(one, tail), x)
