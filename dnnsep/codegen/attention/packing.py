"""How a head's keys, values and queries are laid out in scratch memory, in f32.

Keys are transposed: vectors of neighbouring keys, one after the other for each place of a key. The
last vector of all is filled up with the last key. Values and queries lie one after the other,
filled up with zeros to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from dnnsep.codegen.attention.special import AttentionSpecial
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I32, I64, POINTER, Code
from dnnsep.codegen.windows.shuffles import transposed

# f(source, elements between tokens, target, tokens, scale); scale is of keys only.
_ARGUMENTS = [POINTER, I64, POINTER, I64, F32]


def emit_key_packing(module: ir.Module, special: AttentionSpecial) -> ir.Function:
    """Returns what packs all keys of a head, times the scale."""
    code = Code(module, "pack_keys", _ARGUMENTS).internal()
    source, apart, target, count, scale = code.arguments
    b, lanes, depth = code.builder, special.isa.lanes, special.depth
    element = ELEMENTS[special.dtype]
    scales = code.broadcast(scale, lanes)
    words = ir.VectorType(I32, lanes)
    whole = ir.VectorType(F32, lanes)
    last = b.sub(count, I64(1))

    def vector(first: ir.Value) -> None:
        rows = [
            code.at(source, b.mul(code.least(b.add(first, I64(n)), last), apart), element.type)
            for n in range(lanes)
        ]
        begin = code.at(target, b.mul(first, I64(depth)), F32)
        for start in starts(depth, lanes):
            places = [code.at(row, start, element.type) for row in rows]
            values = [element.load(code, place, lanes, min(lanes, depth)) for place in places]
            columns = transposed(code, [b.bitcast(value, words) for value in values])
            for n, column in enumerate(columns[:depth]):
                scaled = b.fmul(b.bitcast(column, whole), scales)
                code.store(scaled, code.at(begin, (start + n) * lanes, F32))

    code.for_each(I64(0), count, vector, step=lanes)
    return code.end()


def emit_value_packing(module: ir.Module, special: AttentionSpecial) -> ir.Function:
    """Returns what packs all values of a head."""
    code = Code(module, "pack_values", _ARGUMENTS).internal()
    source, apart, target, count, _ = code.arguments
    vectors, depth = special.value_vectors, special.value_depth

    def one(token: ir.Value) -> None:
        row = code.at(source, code.builder.mul(token, apart), ELEMENTS[special.dtype].type)
        room = code.builder.mul(token, I64(vectors * special.isa.lanes))
        copy_row(code, special, row, code.at(target, room, F32), depth)

    code.for_each(I64(0), count, one)
    return code.end()


def emit_query_packing(
    code: Code,
    special: AttentionSpecial,
    row_of: Callable[[ir.Value], ir.Value],
    target: ir.Value,
    count: ir.Value,
) -> None:
    """Emits packing so many queries; ``row_of`` says where each is."""

    def one(number: ir.Value) -> None:
        room = code.builder.mul(number, I64(query_floats(special)))
        copy_row(code, special, row_of(number), code.at(target, room, F32), special.depth)

    code.for_each(I64(0), count, one)


def query_floats(special: AttentionSpecial) -> int:
    """Returns how many floats apart packed queries are: whole vectors."""
    return -(-special.depth // special.isa.lanes) * special.isa.lanes


def copy_row(
    code: Code, special: AttentionSpecial, source: ir.Value, target: ir.Value, depth: int
) -> None:
    """Emits copying a row of a tensor as f32, filled up with zeros to whole vectors."""
    lanes, element = special.isa.lanes, ELEMENTS[special.dtype]
    for start in range(0, depth, lanes):
        place = code.at(source, start, element.type)
        value = element.load(code, place, lanes, min(lanes, depth - start))
        code.store(value, code.at(target, start, F32))


def starts(depth: int, lanes: int) -> list[int]:
    """Returns where vectors of a row start; the last of several ends where the row does."""
    return [max(0, min(start, depth - lanes)) for start in range(0, depth, lanes)]
