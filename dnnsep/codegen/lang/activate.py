"""The activations on a vector of f32, with NaN and infinity as torch's vectors have them."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from dnnsep.codegen.lang.emit import I32, Code

# Cody and Waite's split of ln 2: the first part has few bits, so that a whole number times it is
# exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOG2_E = 1.44269504088896341
# Where exp(x) is infinite in f32, and where it is taken as 0, since a power of 2 below -125.5 is
# nearly as small as a normal number can be.
_EXP_MOST, _EXP_LEAST = 88.8, -87.3
# exp(r) for |r| <= ln 2 / 2, with a relative error of 3e-9: the first two terms of the series, and
# those after them fitted so that the largest error was least.
_EXP_TERMS = (
    0.001381446699708962,
    0.008368780453286928,
    0.04166839421554433,
    0.16666520107475521,
    0.4999999341247123,
    1.0,
    1.0,
)
# Adding it rounds a small number to a whole one, which then is in the last bits of the sum; 126
# more than it is the exponent's bits of half that power of 2.
_ROUNDER = 1.5 * 2**23 + 126

# The length of a vector of AVX-512, and its words for what a number is above a whole one and for
# rounding as always.
_WIDE, _FROM_FLOOR, _NEAREST = 16, 0b1001, 4
# 2 to the power of what lies between 0 and 1, with relative errors of 2e-9 and of 8e-5, each fitted
# so that it was least; and a power of 2 whose reciprocal is a normal number.
_POWER_TERMS = (
    0.0002170225372127143,
    0.0012439688337986254,
    0.009678840940077238,
    0.05548334201279778,
    0.24022983626756012,
    0.6931469838411474,
    1.0000000018557922,
)
_ROUGH_POWER_TERMS = (
    0.07802458889126244,
    0.22606722506223034,
    0.695833412576361,
    0.9999252256853781,
)
_MOST_POWER = 126.0

# tanh(x) = x P(x^2) / Q(x^2) on [-9, 9], beyond which it is 1 in f32: fitted so that the largest
# relative error, 2.1e-8, was least.
_TANH_MOST = 9.0
_TANH_P = (
    1.3354654748714458e-08,
    2.0609076239949723e-05,
    0.0034955876907297014,
    0.1338102524197147,
    0.9999999794489717,
)
_TANH_Q = (
    7.776555204873278e-07,
    0.00032856341554215345,
    0.025876980450714647,
    0.4671434083268642,
    1.0,
)

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


def activate(code: Code, name: str, x: ir.Value, rough: bool = False) -> ir.Value:
    """Returns an activation of ACTIVATIONS of a vector of f32; with ``rough`` one of silu and
    sigmoid that is within 1.4e-4 of itself, a fourteenth of how far off bf16 may be."""
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
        return _of_sigmoid(code, number(1.0) if name == "sigmoid" else x, x, rough)
    if name == "gelu":
        # Below, gelu is 0, which erf's last bit times a large x would not be.
        near = _at_least(code, x, -_ERF_MOST)
        half = b.fmul(near, number(0.5))
        value = code.fma(half, _erf_of_root_half(code, near), half)
        # Of either infinity torch's vectors give NaN, which x - x is then, and 0 else.
        return b.fadd(value, b.fsub(x, x))
    raise ValueError(f"activation {name!r}")


def _at_least(code: Code, x: ir.Value, limit: float) -> ir.Value:
    """Returns the larger of x and the limit; NaN where x is NaN, since the comparison is false."""
    bound = code.splat(limit, x.type)
    return code.builder.select(code.builder.fcmp_ordered(">", bound, x), bound, x)


def _at_most(code: Code, x: ir.Value, limit: float) -> ir.Value:
    """Returns the smaller of x and the limit; NaN where x is NaN."""
    bound = code.splat(limit, x.type)
    return code.builder.select(code.builder.fcmp_ordered("<", bound, x), bound, x)


def exp(code: Code, x: ir.Value) -> ir.Value:
    """Returns e to the power x, which is split into a power of 2 and a small rest; 0 where that is
    less than 2 to the power -125.5."""
    b, kind = code.builder, x.type
    whole = ir.VectorType(I32, kind.count)
    near = _at_most(code, _at_least(code, x, _EXP_LEAST), _EXP_MOST)
    rounder = code.splat(_ROUNDER, kind)
    rounded = code.fma(near, code.splat(_LOG2_E, kind), rounder)
    power = b.fsub(rounded, rounder)
    rest = code.fma(power, code.splat(-_LN2_HIGH, kind), near)
    rest = code.fma(power, code.splat(-_LN2_LOW, kind), rest)
    # Half the power of 2 and twice the rest: the largest power itself is beyond f32.
    half = b.bitcast(b.shl(b.bitcast(rounded, whole), code.splat(23, whole)), kind)
    return b.fmul(_polynomial(code, [2 * term for term in _EXP_TERMS], rest), half)


def _of_sigmoid(code: Code, factor: ir.Value, x: ir.Value, rough: bool) -> ir.Value:
    """Returns a factor, 1 or x, times the sigmoid of x.

    AVX-512 has instructions for the parts of a power of 2: what a number is above a whole one, and
    scaling by the whole one, which goes to 0 or to infinity where that is right.
    """
    b, kind = code.builder, x.type
    one = code.splat(1.0, kind)
    if kind.count != _WIDE:
        return b.fdiv(factor, b.fadd(one, exp(code, b.fneg(x))))
    power = b.fmul(x, code.splat(-_LOG2_E, kind))
    options = (one, ir.Constant(ir.IntType(_WIDE), -1), I32(_NEAREST))
    rest = code.call("llvm.x86.avx512.mask.reduce.ps.512", kind, power, I32(_FROM_FLOOR), *options)
    terms = _ROUGH_POWER_TERMS if rough else _POWER_TERMS
    raised = _polynomial(code, terms, rest)
    scaled = code.call("llvm.x86.avx512.mask.scalef.ps.512", kind, raised, power, *options)
    below = b.fadd(one, scaled)
    if rough:
        return b.fmul(factor, _rough_inverse(code, below))
    # Of infinity Newton's method makes NaN.
    finite = b.fcmp_unordered("<", power, code.splat(_MOST_POWER, kind))
    inverse = b.select(finite, _inverse(code, below), code.splat(0.0, kind))
    return b.fmul(factor, inverse)


def tanh(code: Code, x: ir.Value) -> ir.Value:
    """Returns the hyperbolic tangent of x, within 3 units in the last place of f32."""
    near = _at_most(code, _at_least(code, x, -_TANH_MOST), _TANH_MOST)
    square = code.builder.fmul(near, near)
    numerator = code.builder.fmul(near, _polynomial(code, _TANH_P, square))
    value = code.builder.fmul(numerator, _inverse(code, _polynomial(code, _TANH_Q, square)))
    return _at_most(code, _at_least(code, value, -1.0), 1.0)


def _erf_of_root_half(code: Code, x: ir.Value) -> ir.Value:
    """Returns erf(x / sqrt 2) of an x that is at least -_ERF_MOST."""
    near = _at_most(code, x, _ERF_MOST)
    square = code.builder.fmul(near, near)
    numerator = code.builder.fmul(near, _polynomial(code, _ERF_P, square))
    return code.builder.fmul(numerator, _inverse(code, _polynomial(code, _ERF_Q, square)))


def _inverse(code: Code, x: ir.Value) -> ir.Value:
    """Returns 1 / x of an x from 1 to 2 to the power 126, within a unit in the last place.

    AVX-512 has a reciprocal of 14 bits, which one step of Newton's method makes one of f32: faster
    than a division, which takes as long as many multiply-adds.
    """
    one = code.splat(1.0, x.type)
    if x.type.count != _WIDE:
        return code.builder.fdiv(one, x)
    inverse = _rough_inverse(code, x)
    error = code.fma(code.builder.fneg(x), inverse, one)
    return code.fma(inverse, error, inverse)


def _rough_inverse(code: Code, x: ir.Value) -> ir.Value:
    """Returns 1 / x of a vector of AVX-512, within 2 to the power -14 of itself; 0 of infinity."""
    every = ir.Constant(ir.IntType(_WIDE), -1)
    return code.call("llvm.x86.avx512.rcp14.ps.512", x.type, x, x, every)


def _polynomial(code: Code, terms: Sequence[float], x: ir.Value) -> ir.Value:
    """Returns a polynomial of x by Horner's rule; the highest power's term comes first."""
    value = code.splat(terms[0], x.type)
    for term in terms[1:]:
        value = code.fma(value, x, code.splat(term, x.type))
    return value
