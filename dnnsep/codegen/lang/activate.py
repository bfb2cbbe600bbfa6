"""The activations on a vector of f32, with NaN and infinity as IEEE arithmetic has them."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from dnnsep.codegen.lang.emit import I32, Code

# Cody and Waite's split of ln 2: the first part has few bits, so that a whole number times it is
# exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOG2_E = 1.44269504088896341
# Beyond these exp is infinite in f32, and too small to be seen in 1 + exp.
_EXP_MOST, _EXP_LEAST = 88.0, -87.0
_EXP_TERMS = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)

# erf(x / sqrt 2) = x P(x^2) / Q(x^2) on [-5.2, 5.2], beyond which it is within 2e-7 of 1: a
# least-squares fit at Chebyshev points, reweighted until the largest error, 2e-8, was least. In f32
# arithmetic erf is within 4e-7.
_ERF_MOST = 5.2
_ERF_P = (
    2.5359625178110435e-10,
    -4.5754627882515196e-08,
    5.907743743478008e-06,
    2.7584519017063877e-04,
    8.59655011896744e-03,
    0.06529854821996284,
    0.7978844314540319,
)
_ERF_Q = (
    5.210384615522493e-05,
    1.639585822762734e-03,
    0.027193918646666714,
    0.24850514223243073,
    1.0,
)

# Those whose code is too long to be written out for each vector.
LONG = ("silu", "sigmoid", "gelu")


def activate(code: Code, name: str, x: ir.Value) -> ir.Value:
    """Returns an activation of ACTIVATIONS of a vector of f32."""
    b, kind = code.builder, x.type

    def number(value: float) -> ir.Value:
        return code.splat(value, kind)

    if name == "none":
        return x
    if name == "relu":
        return _at_least(code, x, 0.0)
    if name == "relu6":
        return _at_most(code, _at_least(code, x, 0.0), 6.0)
    if name in ("hardswish", "hardsigmoid"):
        inner = _at_most(code, _at_least(code, b.fadd(x, number(3.0)), 0.0), 6.0)
        return b.fmul(inner if name == "hardsigmoid" else b.fmul(x, inner), number(1 / 6))
    if name in ("silu", "sigmoid"):
        numerator = number(1.0) if name == "sigmoid" else x
        return b.fdiv(numerator, b.fadd(number(1.0), _exp(code, b.fneg(x))))
    if name == "gelu":
        # Below, gelu is 0, which erf's last bit times a large x would not be.
        x = _at_least(code, x, -_ERF_MOST)
        half = b.fmul(x, number(0.5))
        return code.fma(half, _erf_of_root_half(code, x), half)
    raise ValueError(f"activation {name!r}")


def _at_least(code: Code, x: ir.Value, limit: float) -> ir.Value:
    """Returns the larger of x and the limit; NaN where x is NaN, since the comparison is false."""
    bound = code.splat(limit, x.type)
    return code.builder.select(code.builder.fcmp_ordered(">", bound, x), bound, x)


def _at_most(code: Code, x: ir.Value, limit: float) -> ir.Value:
    """Returns the smaller of x and the limit; NaN where x is NaN."""
    bound = code.splat(limit, x.type)
    return code.builder.select(code.builder.fcmp_ordered("<", bound, x), bound, x)


def _exp(code: Code, x: ir.Value) -> ir.Value:
    """Returns e to the power x, which is split into a power of 2 and a small rest."""
    b, kind = code.builder, x.type
    whole = ir.VectorType(I32, kind.count)
    near = _at_most(code, _at_least(code, x, _EXP_LEAST), _EXP_MOST)
    power = code.intrinsic("llvm.rint", b.fmul(near, code.splat(_LOG2_E, kind)))
    rest = code.fma(power, code.splat(-_LN2_HIGH, kind), near)
    rest = code.fma(power, code.splat(-_LN2_LOW, kind), rest)
    value = _polynomial(code, _EXP_TERMS, rest)
    biased = b.add(b.fptosi(power, whole), code.splat(127, whole))
    scale = b.bitcast(b.shl(biased, code.splat(23, whole)), kind)
    value = b.fmul(value, scale)
    infinity = code.splat(float("inf"), kind)
    return b.select(b.fcmp_ordered(">", x, code.splat(_EXP_MOST, kind)), infinity, value)


def _erf_of_root_half(code: Code, x: ir.Value) -> ir.Value:
    """Returns erf(x / sqrt 2) of an x that is at least -_ERF_MOST."""
    near = _at_most(code, x, _ERF_MOST)
    square = code.builder.fmul(near, near)
    numerator = code.builder.fmul(near, _polynomial(code, _ERF_P, square))
    return code.builder.fdiv(numerator, _polynomial(code, _ERF_Q, square))


def _polynomial(code: Code, terms: Sequence[float], x: ir.Value) -> ir.Value:
    """Returns a polynomial of x by Horner's rule; the highest power's term comes first."""
    value = code.splat(terms[0], x.type)
    for term in terms[1:]:
        value = code.fma(value, x, code.splat(term, x.type))
    return value
