"""Matrices of whole vectors transposed, zipped and unzipped in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from dnnsep.codegen.lang.emit import I32, Code

# Shuffles within so many bits are the cheapest, and all that AVX2 has for single elements.
_LANE_BITS = 128


def transposed(code: Code, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """Returns the columns of a square matrix of integers, a vector each.

    First neighbours are interleaved within 128 bits, so that each 128 bits hold elements of one
    column; then these are exchanged between the vectors.
    """
    kind = rows[0].type
    inside = _LANE_BITS // kind.element.width
    groups = [
        _interleaved(code, rows[start : start + inside], inside)
        for start in range(0, len(rows), inside)
    ]
    columns: list[ir.Value] = [None] * len(rows)
    for number in range(inside):
        blocks = _blocks(code, [group[number] for group in groups], inside)
        for lane, block in enumerate(blocks):
            columns[lane * inside + number] = block
    return columns


def _interleaved(code: Code, rows: Sequence[ir.Value], inside: int) -> list[ir.Value]:
    """Returns, of as many rows as 128 bits have elements, vectors with elements of one column in
    each 128 bits: the first column of them in the first vector, and so on."""
    lanes = rows[0].type.count
    half = len(rows) // 2

    def order(high: bool) -> list[int]:
        places = []
        for start in range(0, lanes, inside):
            first = start + (inside // 2 if high else 0)
            places += [n + side for n in range(first, first + inside // 2) for side in (0, lanes)]
        return places

    vectors = list(rows)
    for _ in range(inside.bit_length() - 1):
        pairs = [(vectors[n], vectors[n + half]) for n in range(half)]
        vectors = [shuffle(code, *pair, order(high)) for pair in pairs for high in (False, True)]
    return vectors


def _blocks(code: Code, vectors: Sequence[ir.Value], inside: int) -> list[ir.Value]:
    """Returns the 128 bits of vectors transposed: as many vectors as each has of them."""
    count = len(vectors)
    if count == 1:
        return list(vectors)
    evens, odds = ([n for n in range(2 * count) if n % 2 == side] for side in (0, 1))

    def of(blocks: Sequence[int]) -> list[int]:
        return [block * inside + n for block in blocks for n in range(inside)]

    def halves(pair: Sequence[ir.Value]) -> list[ir.Value]:
        return [shuffle(code, pair[0], pair[1], of(blocks)) for blocks in (evens, odds)]

    pairs = [halves(vectors[n : n + 2]) for n in range(0, count, 2)]
    if count == 2:
        return pairs[0]
    # The even blocks of all vectors, and the odd ones, each in order; then of these again.
    even, odd = (halves([pair[side] for pair in pairs]) for side in (0, 1))
    return [even[0], odd[0], even[1], odd[1]]


def zipped(code: Code, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """Returns vectors with the first elements of all rows, then the second ones, and so on."""
    lanes, count = rows[0].type.count, len(rows)

    def source(vector: int, lane: int) -> tuple[int, int]:
        element, row = divmod(vector * lanes + lane, count)
        return row, element

    return _picked(code, rows, source)


def unzipped(code: Code, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """Returns the rows that ``zipped`` was given."""
    lanes, count = vectors[0].type.count, len(vectors)

    def source(row: int, lane: int) -> tuple[int, int]:
        vector, element = divmod(lane * count + row, lanes)
        return vector, element

    return _picked(code, vectors, source)


def _picked(
    code: Code, vectors: Sequence[ir.Value], source: Callable[[int, int], tuple[int, int]]
) -> list[ir.Value]:
    """Returns as many vectors, each lane from the vector and the lane that ``source`` says."""
    lanes = vectors[0].type.count
    results = []
    for number in range(len(vectors)):
        places = [source(number, lane) for lane in range(lanes)]
        result = vectors[0]
        # Each step puts the elements of one more vector in their places. Those of the first are
        # only put there by the first step.
        for which in range(1, len(vectors)):
            order = []
            for lane, (vector, element) in enumerate(places):
                if vector == which:
                    order.append(lanes + element)
                else:
                    order.append(element if which == 1 and vector == 0 else lane)
            result = shuffle(code, result, vectors[which], order)
        results.append(result)
    return results


def shuffle(code: Code, first: ir.Value, second: ir.Value, order: Sequence[int]) -> ir.Value:
    """Returns the lanes of two vectors one after the other in this order."""
    mask = ir.Constant(ir.VectorType(I32, len(order)), [I32(lane) for lane in order])
    return code.builder.shuffle_vector(first, second, mask)
