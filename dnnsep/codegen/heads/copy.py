"""How an attention kernel packs what it multiplies: widened to f32, and transposed if need be."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from dnnsep.codegen.heads.layout import GROUP
from dnnsep.codegen.heads.masked import first_lanes, load, load_raw
from dnnsep.codegen.lang.dtype import Element
from dnnsep.codegen.lang.emit import F32, I32, I64, POINTER, Code


def emit_transpose(module: ir.Module, element: Element, lanes: int) -> ir.Function:
    """Returns f(source, rows, pitch, columns, target, column, block): writes blocks of ``lanes``
    rows of the source, ``pitch`` elements apart, as a vector for each column, in f32.

    Vectors of a block are ``column`` f32 apart, blocks ``block``. The last block is filled up with
    copies of the last row. Columns are written in groups of GROUP, of which the last one may reach
    beyond the columns.
    """
    arguments = [POINTER, I64, I64, I64, POINTER, I64, I64]
    code = Code(module, "transpose", arguments).internal()
    source, rows, pitch, columns, target, column, block = code.arguments
    b = code.builder
    last = b.sub(rows, I64(1))
    left = b.srem(columns, I64(GROUP))
    whole = b.sub(columns, left)
    mask = first_lanes(code, left, GROUP)
    group = ir.VectorType(element.type, GROUP)

    def one_block(row: ir.Value) -> None:
        starts = [
            code.at(source, b.mul(code.least(b.add(row, I64(i)), last), pitch), element.type)
            for i in range(lanes)
        ]
        place = code.at(target, b.mul(b.sdiv(row, I64(lanes)), block), F32)

        def store(at: ir.Value, chunks: list[ir.Value]) -> None:
            for number, vector in enumerate(transposed(code, element, chunks)):
                offset = b.mul(b.add(at, I64(number)), column)
                code.store(vector, code.at(place, offset, F32))

        def one_group(at: ir.Value) -> None:
            store(at, [code.load(code.at(start, at, element.type), group) for start in starts])

        def tail() -> None:
            places = [code.at(start, whole, element.type) for start in starts]
            store(whole, [load_raw(code, element, start, mask) for start in places])

        code.for_each(I64(0), whole, one_group, step=GROUP)
        code.when(b.icmp_signed(">", left, I64(0)), tail)

    code.for_each(I64(0), rows, one_block, step=lanes)
    return code.end()


def transposed(code: Code, element: Element, chunks: Sequence[ir.Value]) -> list[ir.Value]:
    """Returns GROUP vectors in f32 of as many lanes as there are chunks of GROUP elements: lane i
    of vector j is element j of chunk i."""
    b, quarter = code.builder, GROUP
    # In each 128 bits of vector i lies chunk i of some four neighbours, as is transposed below.
    vectors = [
        element.widened(code, _joined(code, [chunks[at + i] for at in range(0, len(chunks), 4)]))
        for i in range(quarter)
    ]

    def shuffled(first: ir.Value, second: ir.Value, order: Sequence[int]) -> ir.Value:
        lanes = first.type.count
        mask = [
            part + index % quarter + (lanes if index >= quarter else 0)
            for part in range(0, lanes, quarter)
            for index in order
        ]
        return b.shuffle_vector(first, second, _order(mask))

    low = [shuffled(vectors[i], vectors[i + 1], (0, 4, 1, 5)) for i in (0, 2)]
    high = [shuffled(vectors[i], vectors[i + 1], (2, 6, 3, 7)) for i in (0, 2)]
    return [
        shuffled(first, second, order)
        for first, second in (low, high)
        for order in ((0, 1, 4, 5), (2, 3, 6, 7))
    ]


def _joined(code: Code, parts: list[ir.Value]) -> ir.Value:
    """Returns vectors one after the other as one."""
    while len(parts) > 1:
        order = _order(range(2 * parts[0].type.count))
        parts = [
            code.builder.shuffle_vector(first, second, order)
            for first, second in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _order(lanes: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(I32, len(lanes)), [I32(lane) for lane in lanes])


def emit_widen(module: ir.Module, element: Element, lanes: int, width: int) -> ir.Function:
    """Returns f(source, rows, pitch, target): writes rows of ``width`` elements as whole vectors of
    f32, one after the other, filled up with zeros."""
    code = Code(module, "widen", [POINTER, I64, I64, POINTER]).internal()
    source, rows, pitch, target = code.arguments
    b = code.builder
    vectors = -(-width // lanes)

    def row(at: ir.Value) -> None:
        start = code.at(source, b.mul(at, pitch), element.type)
        place = code.at(target, b.mul(at, I64(vectors * lanes)), F32)
        for vector in range(vectors):
            first = vector * lanes
            there = min(lanes, width - first)
            value = element.load(code, code.at(start, first, element.type), lanes, there)
            code.store(value, code.at(place, first, F32))

    code.for_each(I64(0), rows, row)
    return code.end()


def emit_panels(module: ir.Module, element: Element, lanes: int, depth: int) -> ir.Function:
    """Returns f(source, columns, pitch, target): writes ``depth`` rows as (vectors, depth, lanes)
    in f32, the last vector filled up with zeros."""
    code = Code(module, "panels", [POINTER, I64, I64, POINTER]).internal()
    source, columns, pitch, target = code.arguments
    b = code.builder
    left = b.srem(columns, I64(lanes))
    whole = b.sub(columns, left)
    mask = first_lanes(code, left, lanes)

    def row(at: ir.Value) -> None:
        start = code.at(source, b.mul(at, pitch), element.type)
        place = code.at(target, b.mul(at, I64(lanes)), F32)

        def one(first: ir.Value) -> None:
            value = element.load(code, code.at(start, first, element.type), lanes, None)
            code.store(value, code.at(place, b.mul(first, I64(depth)), F32))

        def tail() -> None:
            value = load(code, element, code.at(start, whole, element.type), mask)
            code.store(value, code.at(place, b.mul(whole, I64(depth)), F32))

        code.for_each(I64(0), whole, one, step=lanes)
        code.when(b.icmp_signed(">", left, I64(0)), tail)

    code.for_each(0, depth, row)
    return code.end()
