"""The exponentials of a block's scores, and what their sums are divided by."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from dnnsep.codegen.lang.activate import exp
from dnnsep.codegen.lang.emit import F32, I32, I64, POINTER, Code


def emit_softmax(module: ir.Module, lanes: int) -> ir.Function:
    """Returns f(scores, most, rows, vectors): replaces scores (vectors, rows, lanes) by their
    exponentials over that of the row's largest score, of which ``most`` has one for each lane; and
    ``most`` by 1 over the row's sum in all lanes."""
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
            weight = exp(code, b.fsub(code.load(score, vector), largest))
            code.store(weight, score)
            return [b.fadd(sums[0], weight)]

        (total,) = code.for_range(I64(0), vectors, one, [ir.Constant(vector, None)])
        total = _of_all_lanes(code, total, b.fadd)
        code.store(b.fdiv(code.splat(1.0, vector), total), place)

    code.for_each(I64(0), rows, row)
    return code.end()


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
