"""Vectors of partial sums, or of partial maxima, folded to one number for each row."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from dnnsep.codegen.lang.emit import F32, I1, I32, Code
from dnnsep.codegen.rowwise.operators import Combine, Reduction

# Numbers of so many rows are computed in one vector.
UNIFORM = ir.VectorType(F32, 4)


def shuffled(
    code: Code, value: ir.Value, lanes: Sequence[int], other: ir.Value | None = None
) -> ir.Value:
    """Returns lanes of a vector; those of a second one, of the same type, count on."""
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), [I32(lane) for lane in lanes])
    second = ir.Constant(value.type, ir.Undefined) if other is None else other
    return code.builder.shuffle_vector(value, second, mask)


def inside(code: Code, reduction: Reduction, value: ir.Value, lanes: range) -> ir.Value:
    """Returns a vector that changes nothing of a reduction but by some lanes."""
    count = value.type.count
    if lanes == range(count):
        return value
    mask = ir.Constant(ir.VectorType(I1, count), [I1(lane in lanes) for lane in range(count)])
    return code.builder.select(mask, value, code.splat(reduction.neutral, value.type))


def tree(code: Code, reduction: Reduction, values: Sequence[ir.Value]) -> ir.Value:
    """Returns vectors combined with each other, in as few steps one after the other as possible."""
    values = list(values)
    while len(values) > 1:
        half = -(-len(values) // 2)
        pairs = [
            reduction.combine(code, first, second)
            for first, second in zip(values, values[half:], strict=False)
        ]
        values = pairs + values[len(pairs) : half]
    return values[0]


def folded(code: Code, reduction: Reduction, rows: Sequence[ir.Value]) -> ir.Value:
    """Returns the reduction of each row's lanes, in the lane of the row's number; beyond the last
    of up to four rows its own is repeated. The order is the same for any number of rows."""
    if reduction.of_numbers is None:
        return _folded(code, reduction.combine, rows)
    b = code.builder
    fast = _folded(code, reduction.of_numbers, rows)
    before = b.block
    nan = [b.fcmp_unordered("uno", row, row) for row in rows]
    some = nan[0]
    for other in nan[1:]:
        some = b.or_(some, other)
    with b.if_then(b.icmp_unsigned("!=", *_bits(code, some)), likely=False):
        slow = _folded(code, reduction.combine, rows)
        rare = b.block
    value = b.phi(UNIFORM)
    value.add_incoming(fast, before)
    value.add_incoming(slow, rare)
    return value


def _bits(code: Code, flags: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Returns flags as the bits of a number, and 0."""
    kind = ir.IntType(flags.type.count)
    return code.builder.bitcast(flags, kind), kind(0)


def _folded(code: Code, combine: Combine, rows: Sequence[ir.Value]) -> ir.Value:
    short = [_shortened(code, combine, row) for row in rows]
    first, second, third, fourth = [*short, *[short[-1]] * (UNIFORM.count - len(short))]

    def pair(x: ir.Value, y: ir.Value, left: Sequence[int], right: Sequence[int]) -> ir.Value:
        return combine(code, shuffled(code, x, left, y), shuffled(code, x, right, y))

    low, high = (
        pair(x, y, (0, 1, 4, 5), (2, 3, 6, 7)) for x, y in ((first, second), (third, fourth))
    )
    return pair(low, high, (0, 2, 4, 6), (1, 3, 5, 7))


def _shortened(code: Code, combine: Combine, row: ir.Value) -> ir.Value:
    """Returns a vector as short as UNIFORM, its halves combined as often as that takes."""
    lanes = row.type.count
    while lanes > UNIFORM.count:
        lanes //= 2
        low, high = shuffled(code, row, range(lanes)), shuffled(code, row, range(lanes, 2 * lanes))
        row = combine(code, low, high)
    return row
