"""The exponentials of a block's scores, and what their sums are divided by."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from dnnsep.codegen.lang.emit import F32, I32, I64, POINTER, Code

# Scores are multiplied by it, since powers of 2 take less than exponentials.
LOG2_E = 1.44269504088896341

# Where a power of 2 is taken as 0: its exponent's bits are.
_LEAST = -126.0
# 2 to the power x for |x| <= 1/2, with a relative error of 9.2e-8: a least-squares fit at Chebyshev
# points, reweighted until the largest error was least. It is 1 at 0.
_TERMS = (
    0.0013264658241391824,
    0.009671565865361038,
    0.05550734389426272,
    0.24022241272316838,
    0.6931469769900561,
    1.0,
)
# Adding it rounds a small number to a whole one, which then is in the last bits of the sum; 126
# more than it is the exponent's bits of half that power of 2.
_ROUNDER = 1.5 * 2**23 + 126


def emit_softmax(module: ir.Module, lanes: int) -> ir.Function:
    """Returns f(scores, most, rows, vectors): replaces scores (vectors, rows, lanes) by 2 to the
    power of how far they are above the row's largest one, of which ``most`` has one for each lane;
    and the first lane of ``most`` by 1 over the row's sum."""
    code = Code(module, "softmax", [POINTER, POINTER, I64, I64]).internal()
    scores, most, rows, vectors = code.arguments
    b, vector = code.builder, ir.VectorType(F32, lanes)

    def larger(x: ir.Value, y: ir.Value) -> ir.Value:
        return b.select(b.fcmp_ordered(">", x, y), x, y)

    def row(at: ir.Value) -> None:
        place = code.at(most, at, vector)
        largest = _of_all_lanes(code, code.load(place, vector), larger)

        def one(number: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            score = code.at(scores, b.add(b.mul(number, rows), at), vector)
            weight = _power(code, b.fsub(code.load(score, vector), largest))
            code.store(weight, score)
            return [b.fadd(sums[0], weight)]

        (total,) = code.for_range(I64(0), vectors, one, [ir.Constant(vector, None)])
        total = _of_all_lanes(code, total, b.fadd)
        share = b.fdiv(ir.Constant(F32, 1.0), b.extract_element(total, I32(0)))
        code.store(share, place)

    code.for_each(I64(0), rows, row)
    return code.end()


def _power(code: Code, x: ir.Value) -> ir.Value:
    """Returns 2 to the power x, which is not above 0; 0 where that is less than 2 to the power
    -125.5, and NaN where x is NaN."""
    b, kind = code.builder, x.type
    whole = ir.VectorType(I32, kind.count)
    least, rounder = code.splat(_LEAST, kind), code.splat(_ROUNDER, kind)
    near = b.select(b.fcmp_ordered(">", least, x), least, x)
    rounded = b.fadd(near, rounder)
    rest = b.fsub(near, b.fsub(rounded, rounder))
    # Half the power of 2 and twice the rest's: see _ROUNDER.
    half = b.bitcast(b.shl(b.bitcast(rounded, whole), code.splat(23, whole)), kind)
    power = code.splat(2 * _TERMS[0], kind)
    for term in _TERMS[1:]:
        power = code.fma(power, rest, code.splat(2 * term, kind))
    return b.fmul(power, half)


def _of_all_lanes(
    code: Code, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]
) -> ir.Value:
    """Returns what all lanes combined are, in each lane."""
    lanes = value.type.count
    apart = lanes // 2
    while apart:
        order = [I32(lane ^ apart) for lane in range(lanes)]
        mask = ir.Constant(ir.VectorType(I32, lanes), order)
        value = combine(value, code.builder.shuffle_vector(value, value, mask))
        apart //= 2
    return value
