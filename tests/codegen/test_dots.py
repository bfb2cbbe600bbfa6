"""The ways of multiplying, alone: a step and its panel, and what they put into a tile."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from llvmlite import ir

from dnnsep.codegen.dots import DOTS, VectorDot, dots_for
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, POINTER, Code
from dnnsep.dtypes import DTYPES
from tests.codegen.conftest import ISAS, VECTOR_WAYS, Way
from tests.codegen.pieces import JUNK, Memory, function_of, loaded, stored

_VECTORS = 2


@pytest.mark.parametrize("way", VECTOR_WAYS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_steps_are_a_product(steps: int, way: Way) -> None:
    """Of one pixel by a panel, added to the sums that there are."""
    isa, dot = way.isa, way.dot
    assert isinstance(dot, VectorDot)
    depth = steps * dot.k
    width = _VECTORS * isa.lanes
    vector, words = ir.VectorType(F32, isa.lanes), ir.VectorType(dot.word, isa.lanes)

    def body(code: Code) -> None:
        tile, panel, sums = code.arguments

        def step(at: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            value = code.broadcast(code.load(code.at(tile, at, dot.word), dot.word), isa.lanes)
            row = code.at(panel, code.builder.mul(at, I64(_VECTORS)), words)
            return [
                dot.step(code, total, value, code.load(code.at(row, v, words), words))
                for v, total in enumerate(totals)
            ]

        places = [code.at(sums, v, vector) for v in range(_VECTORS)]
        start = [code.load(place, vector) for place in places]
        totals = code.for_range(I64(0), I64(steps), step, start)
        for total, place in zip(totals, places, strict=True):
            code.store(total, place)

    function = function_of(isa, [POINTER] * 3, body)
    rng = np.random.default_rng(depth)
    pixel, matrix, sums = (
        rng.integers(-9, 10, shape).astype(np.float32)
        for shape in ((depth,), (depth, width), (width,))
    )
    given = [Memory(stored(pixel, dot), True), Memory(dot.pack(matrix, isa), True)]
    result = Memory(sums, True)
    function(given[0].at(0), given[1].at(0), result.at(0))
    assert np.array_equal(result.array, sums + pixel @ matrix)
    assert all(memory.unchanged for memory in given)


def test_a_panel_is_as_large_as_its_matrix(way: Way) -> None:
    panel = way.dot.pack(np.ones((6, 2 * way.isa.lanes), np.float32), way.isa)
    assert panel.nbytes == 6 * 2 * way.isa.lanes * way.dot.bytes
    assert np.array_equal(loaded(panel, way.dot), np.ones(6 * 2 * way.isa.lanes))


def test_store_block(way: Way) -> None:
    """A tile keeps the order of a block's vectors; a tile of bf16 rounds to it."""
    isa, dot = way.isa, way.dot
    vectors = ELEMENTS[dot.dtype].block_vectors
    kind = ir.VectorType(F32, isa.lanes)

    def body(code: Code) -> None:
        source, tile = code.arguments
        values = [code.load(code.at(source, v, kind), kind) for v in range(vectors)]
        dot.store_block(code, isa, values, tile)

    values = np.random.default_rng(0).standard_normal(vectors * isa.lanes).astype(np.float32)
    source = Memory(values, True)
    tile = Memory(stored(np.full_like(values, JUNK), dot), True)
    function_of(isa, [POINTER, POINTER], body)(source.at(0), tile.at(0))
    rounds = DTYPES["bf16"].rounded if dot.bytes == 2 else DTYPES["f32"].rounded
    assert np.array_equal(loaded(tile.array, dot), rounds(values))
    assert source.unchanged


def test_of_input(way: Way) -> None:
    """What is read of the input goes into a tile as it is, whatever it is."""
    dot, element = way.dot, ELEMENTS[way.dot.dtype]
    lanes = way.isa.lanes * 4 // dot.bytes
    dtype = DTYPES[dot.dtype]

    def body(code: Code) -> None:
        source, tile = code.arguments
        value = code.load(source, ir.VectorType(element.type, lanes))
        code.store(dot.of_input(code, element, value), tile)

    function = function_of(way.isa, [POINTER, POINTER], body)
    values = dtype.rounded(np.random.default_rng(0).standard_normal(lanes))
    values[:6] = 0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**-130  # the last one is denormal
    source = Memory(dtype.stored(values), True)
    tile = Memory(stored(np.full(lanes, JUNK), dot), True)
    function(source.at(0), tile.at(0))
    assert loaded(tile.array, dot).tobytes() == values.tobytes()
    assert source.unchanged
    assert dot.reads_input == (tile.array.tobytes() == source.array.tobytes())


def test_each_dtype_has_a_way_on_each_cpu() -> None:
    for isa, dtype in product(ISAS, DTYPES):
        found = dots_for(dtype, isa)
        assert found
        assert {dot.dtype for dot in found} == {dtype}
        assert all(isa.has(feature) for dot in found for feature in dot.needs)
        assert not found[-1].needs


def test_a_product_reads_where_nothing_is_filled_up() -> None:
    for dot in DOTS:
        for channels in range(1, 300):
            depth = dot.depth(channels)
            assert depth >= channels
            assert depth % dot.k == 0
            assert dot.depth(depth) == depth
            if dot.in_tiles:
                assert dot.reads(channels) is (depth == channels)
            else:
                assert dot.reads(channels) is (dot.reads_input and channels % dot.k == 0)


def test_every_way_is_named_once() -> None:
    names = [dot.name for dot in DOTS]
    assert len(set(names)) == len(names)
    assert [repr(dot) for dot in DOTS] == names
