"""How generated code reads and writes f32 and bf16: every number, and every number of lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.lang.dtype import ELEMENTS, FloatElement
from dnnsep.codegen.lang.emit import F32, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function
from dnnsep.dtypes import BF16, DTYPES, Array
from tests.codegen.pieces import JUNK, Memory, function_of

_INFINITY = 0x7F800000


def _bits(*values: int) -> Array:
    return np.array(values, np.uint32).view(np.float32)


# Zeros, infinities, NaN with its highest bit, its lowest and all others, ties to either side and
# just beside them, what rounds up to a power of two and to infinity.
SPECIAL = _bits(
    *(0, 0x80000000, _INFINITY, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7FBFFFFF),
    *(0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0xBF808000, 0xBF818000, 0x3FFFFFFF),
    *(0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7FFFFF, 0x00800000, 0x00808000, 0x00818000),
)
DENORMAL = _bits(1, 0x80000001, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x7FFFFF, 0x807FFFFF)


def _random_floats(count: int) -> Array:
    """Returns any normal numbers, infinities and NaN: of random bits."""
    bits = np.random.default_rng(0).integers(0, 2**32, count, np.uint32)
    values: Array = bits.view(np.float32)
    denormal = (np.abs(values) < 2.0**-126) & (values != 0)
    normal: Array = values[~denormal]
    return normal


def _storing(isa: Isa, element: FloatElement, lanes: int | None = None) -> Function:
    """Returns f(source, target, vectors): f32 there to elements, vector by vector."""
    kind = ir.VectorType(F32, isa.lanes)

    def body(code: Code) -> None:
        source, target, vectors = code.arguments

        def one(at: ir.Value) -> None:
            place = code.at(target, code.builder.mul(at, I64(isa.lanes)), element.type)
            element.store(code, isa, code.load(code.at(source, at, kind), kind), place, lanes)

        code.for_each(I64(0), vectors, one)

    return function_of(isa, [POINTER, POINTER, I64], body)


def _loading(isa: Isa, element: FloatElement, count: int, lanes: int | None = None) -> Function:
    """Returns f(source, target, vectors): elements there to f32, vector by vector."""
    kind = ir.VectorType(F32, count)

    def body(code: Code) -> None:
        source, target, vectors = code.arguments

        def one(at: ir.Value) -> None:
            place = code.at(source, code.builder.mul(at, I64(count)), element.type)
            code.store(element.load(code, place, count, lanes), code.at(target, at, kind))

        code.for_each(I64(0), vectors, one)

    return function_of(isa, [POINTER, POINTER, I64], body)


def _filled(values: Array, lanes: int) -> Array:
    """Returns values with zeros after them up to whole vectors."""
    return np.concatenate([values, np.zeros(-len(values) % lanes, np.float32)])


def _stored(isa: Isa, dtype: str, values: Array) -> Array:
    """Returns f32 values as generated code stores them."""
    source = Memory(_filled(values, isa.lanes), True)
    target = Memory(DTYPES[dtype].stored(np.full_like(source.array, JUNK)), True)
    function = _storing(isa, ELEMENTS[dtype])
    function(source.at(0), target.at(0), source.array.size // isa.lanes)
    assert source.unchanged
    return DTYPES[dtype].loaded(target.array)[: len(values)]


def _same(found: Array, right: Array) -> bool:
    """Whether numbers are the same to the bit, any NaN being like any other."""
    return bool(((found.view(np.uint32) == right.view(np.uint32)) | _both_nan(found, right)).all())


def _both_nan(found: Array, right: Array) -> NDArray[np.bool_]:
    return np.isnan(found) & np.isnan(right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_store_rounds_to_nearest(dtype: str, isa: Isa) -> None:
    values = np.concatenate([SPECIAL, _random_floats(100_000)])
    nan = np.isnan(values)
    found = _stored(isa, dtype, values)
    assert np.isnan(found[nan]).all()
    assert _same(found[~nan], DTYPES[dtype].rounded(values[~nan]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_store_of_denormals(dtype: str, isa: Isa) -> None:
    """The instruction that rounds to bf16 takes them for zeros of their sign."""
    by_instruction = dtype == "bf16" and isa.has("avx512bf16")
    right = np.copysign(0, DENORMAL) if by_instruction else DTYPES[dtype].rounded(DENORMAL)
    assert _same(_stored(isa, dtype, DENORMAL), right.astype(np.float32))


def test_load_of_every_bf16(isa: Isa) -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    for count in (isa.lanes, 2 * isa.lanes):
        source, target = Memory(halves, True), Memory(np.full(halves.size, JUNK), True)
        function = _loading(isa, ELEMENTS["bf16"], count)
        function(source.at(0), target.at(0), halves.size // count)
        assert target.array.tobytes() == BF16.loaded(halves).tobytes()
        assert source.unchanged


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_first_lanes_are_read_and_written(dtype: str, isa: Isa) -> None:
    element, stores = ELEMENTS[dtype], DTYPES[dtype]
    values = np.arange(1, isa.lanes + 1, dtype=np.float32)
    for lanes in (1, 2, isa.lanes // 2 + 1, isa.lanes - 1, isa.lanes):
        short = Memory(stores.stored(values[:lanes]), True)
        read = Memory(np.full(isa.lanes, JUNK), True)
        _loading(isa, element, isa.lanes, lanes)(short.at(0), read.at(0), 1)
        assert np.array_equal(read.array, np.where(values <= lanes, values, 0))
        source = Memory(values, True)
        for room in (lanes, isa.lanes):
            target = Memory(stores.stored(np.full(room, JUNK)), True)
            _storing(isa, element, lanes)(source.at(0), target.at(0), 1)
            right = np.where(values <= lanes, values, JUNK)[:room]
            assert np.array_equal(stores.loaded(target.array), right)


def _through_block(isa: Isa, element: FloatElement, lanes: int | None) -> Function:
    """Returns f(source, vectors, target): a block read, as its vectors of f32, written again."""
    kind = ir.VectorType(F32, isa.lanes)

    def body(code: Code) -> None:
        source, vectors, target = code.arguments
        values = element.load_block(code, isa, source, lanes)
        assert len(values) == element.block_vectors
        for v, value in enumerate(values):
            code.store(value, code.at(vectors, v, kind))
        element.store_block(code, isa, values, target, lanes)

    return function_of(isa, [POINTER] * 3, body)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks(dtype: str, isa: Isa) -> None:
    """In registers as block_order says, in memory as they were; only the first lanes."""
    element, stores = ELEMENTS[dtype], DTYPES[dtype]
    width = element.block_vectors * isa.lanes
    order = element.block_order(isa)
    assert sorted(order) == list(range(width))
    values = np.arange(1, width + 1, dtype=np.float32)
    for lanes in (None, 1, 2, 3, isa.lanes, width - 1, width):
        there = width if lanes is None else lanes
        source = Memory(stores.stored(values[:there]), True)
        vectors = Memory(np.full(width, JUNK), True)
        target = Memory(stores.stored(np.full(there, JUNK)), True)
        function = _through_block(isa, element, lanes)
        function(source.at(0), vectors.at(0), target.at(0))
        assert np.array_equal(vectors.array, np.where(order < there, values[order], 0))
        assert target.array.tobytes() == source.array.tobytes()
        if there < width:  # what follows is not written either
            wide = Memory(stores.stored(np.full(width, JUNK)), True)
            function(source.at(0), vectors.at(0), wide.at(0))
            assert (stores.loaded(wide.array)[there:] == JUNK).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_rounded_as_a_vector_is(dtype: str, isa: Isa) -> None:
    element = ELEMENTS[dtype]
    width, kind = element.block_vectors * isa.lanes, ir.VectorType(F32, isa.lanes)

    def body(code: Code) -> None:
        source, target = code.arguments
        values = [code.load(code.at(source, v, kind), kind) for v in range(element.block_vectors)]
        element.store_block(code, isa, values, target, None)

    values = _filled(SPECIAL[~np.isnan(SPECIAL)], width)
    right = DTYPES[dtype].rounded(values)
    function = function_of(isa, [POINTER, POINTER], body)
    order = element.block_order(isa)
    for first in range(0, len(values), width):
        block = slice(first, first + width)
        source = Memory(values[block][order], True)
        target: Memory = Memory(_junk(dtype, width), True)
        function(source.at(0), target.at(0))
        assert _same(DTYPES[dtype].loaded(target.array), right[block])


def _junk(dtype: str, count: int) -> NDArray[Any]:
    return DTYPES[dtype].stored(np.full(count, JUNK))


@pytest.mark.parametrize("dtype", DTYPES)
def test_streaming_stores(dtype: str, isa: Isa) -> None:
    element, kind = ELEMENTS[dtype], ir.VectorType(F32, isa.lanes)

    def body(code: Code) -> None:
        source, target = code.arguments
        element.store(code, isa, code.load(source, kind), target, streaming=True)
        code.fence()

    values = np.arange(isa.lanes, dtype=np.float32)
    source, target = Memory(values, False), Memory(_junk(dtype, isa.lanes), False)
    function_of(isa, [POINTER, POINTER], body)(source.at(0), target.at(0))
    assert np.array_equal(DTYPES[dtype].loaded(target.array), values)
