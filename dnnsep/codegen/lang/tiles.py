"""A unit of eight tile registers, as AMX has one, in hardware or in software.

A tile has up to 16 rows of up to 64 bytes; a configuration says how many of both each one has, and
nothing beyond them is read or written. Both units are used through the same functions, and give the
same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, F32, I16, I32, I64, POINTER, VOID, Code
from dnnsep.codegen.lang.isa import Isa

TILES = 8
ROWS = 16
ROW_BYTES = 64
_PALETTE, _COLUMNS_AT, _ROWS_AT, _CONFIG_BYTES = 1, 16, 48, 64
_TILE_BYTES = ROWS * ROW_BYTES

# Bits of MXCSR: all exceptions masked, denormal inputs and results taken as zero.
_TILE_ARITHMETIC = 0x1F80 | 0x8000 | 0x0040


@dataclass(frozen=True)
class TileShape:
    """Rows of a tile and bytes of a row."""

    rows: int
    row_bytes: int


class TileUnit(ABC):
    """Emits what is done with tiles. Tiles are named by their numbers."""

    @abstractmethod
    def enter(self, code: Code, shapes: Sequence[TileShape]) -> ir.Value:
        """Configures the tiles, each of which is zero then; returns what ``unit`` below is."""

    @abstractmethod
    def leave(self, code: Code, unit: ir.Value) -> None:
        """Gives the tiles back."""

    @abstractmethod
    def load(
        self, code: Code, unit: ir.Value, tile: int, place: ir.Value, stride: int | ir.Value
    ) -> None:
        """Reads a tile's rows, ``stride`` bytes apart."""

    @abstractmethod
    def store(
        self, code: Code, unit: ir.Value, tile: int, place: ir.Value, stride: int | ir.Value
    ) -> None:
        """Writes a tile's rows, ``stride`` bytes apart."""

    @abstractmethod
    def multiply_bf16(self, code: Code, unit: ir.Value, sums: int, a: int, b: int) -> None:
        """Adds the product of ``a``, rows of pairs of bf16, by ``b``, each of whose rows holds a
        pair for each column, to ``sums`` in f32."""

    @abstractmethod
    def multiply_bytes(self, code: Code, unit: ir.Value, sums: int, a: int, b: int) -> None:
        """Adds the product of ``a``, rows of fours of u8, by ``b``, each of whose rows holds four
        s8 for each column, to ``sums`` in int32."""


def tile_unit(isa: Isa) -> TileUnit:
    """Returns the unit that kernels for these instructions use."""
    return SoftwareTiles() if isa.software_tiles else CpuTiles()


class CpuTiles(TileUnit):
    """AMX. Its instructions name tiles by constants, and ``unit`` is a null pointer."""

    def enter(self, code: Code, shapes: Sequence[TileShape]) -> ir.Value:
        self._call(code, "ldtilecfg", _configuration(code, shapes))
        return ir.Constant(POINTER, None)

    def leave(self, code: Code, unit: ir.Value) -> None:
        self._call(code, "tilerelease")

    def load(
        self, code: Code, unit: ir.Value, tile: int, place: ir.Value, stride: int | ir.Value
    ) -> None:
        self._call(code, "tileloadd64", BYTE(tile), place, _count(stride))

    def store(
        self, code: Code, unit: ir.Value, tile: int, place: ir.Value, stride: int | ir.Value
    ) -> None:
        self._call(code, "tilestored64", BYTE(tile), place, _count(stride))

    def multiply_bf16(self, code: Code, unit: ir.Value, sums: int, a: int, b: int) -> None:
        self._call(code, "tdpbf16ps", BYTE(sums), BYTE(a), BYTE(b))

    def multiply_bytes(self, code: Code, unit: ir.Value, sums: int, a: int, b: int) -> None:
        self._call(code, "tdpbusd", BYTE(sums), BYTE(a), BYTE(b))

    def _call(self, code: Code, name: str, *arguments: ir.Value) -> None:
        code.call(f"llvm.x86.{name}", VOID, *arguments)


class SoftwareTiles(TileUnit):
    """The same on plain instructions, to test what uses tiles where there are none.

    ``unit`` is the address of the configuration and, after it, the tiles' contents.
    """

    def enter(self, code: Code, shapes: Sequence[TileShape]) -> ir.Value:
        unit = code.stack(_CONFIG_BYTES + TILES * _TILE_BYTES)
        words = ir.VectorType(I32, _CONFIG_BYTES // 4)
        code.store(code.load(_configuration(code, shapes), words), unit)
        self._clear(code, code.at(unit, _CONFIG_BYTES, BYTE), TILES * ROWS)
        return unit

    def leave(self, code: Code, unit: ir.Value) -> None:
        pass

    def load(
        self, code: Code, unit: ir.Value, tile: int, place: ir.Value, stride: int | ir.Value
    ) -> None:
        def body(inside: Code) -> None:
            unit, number, place, stride = inside.arguments
            content = _content(inside, unit, number)
            self._clear(inside, content, ROWS)
            self._copy(inside, unit, number, (place, stride), (content, I64(ROW_BYTES)))

        self._call(code, "tile_load", body, unit, I64(tile), place, _count(stride))

    def store(
        self, code: Code, unit: ir.Value, tile: int, place: ir.Value, stride: int | ir.Value
    ) -> None:
        def body(inside: Code) -> None:
            unit, number, place, stride = inside.arguments
            content = _content(inside, unit, number)
            self._copy(inside, unit, number, (content, I64(ROW_BYTES)), (place, stride))

        self._call(code, "tile_store", body, unit, I64(tile), place, _count(stride))

    def multiply_bf16(self, code: Code, unit: ir.Value, sums: int, a: int, b: int) -> None:
        """As the instruction does: for each row the products of a pair's first values and those of
        its second ones are added up apart, without rounding in between, then to each other, then to
        the sums; denormal numbers are taken as zero. Source: Intel's manual, TDPBF16PS."""

        def body(inside: Code) -> None:
            # The arithmetic is in a function of its own, so that none of it is moved to before or
            # after the change of MXCSR.
            saved, ours = inside.stack(4), inside.stack(4)
            inside.call("llvm.x86.sse.stmxcsr", VOID, saved)
            inside.store(I32(_TILE_ARITHMETIC), ours)
            inside.call("llvm.x86.sse.ldmxcsr", VOID, ours)
            self._call(inside, "tile_multiply_rows", self._rows, *inside.arguments)
            inside.call("llvm.x86.sse.ldmxcsr", VOID, saved)

        self._call(code, "tile_multiply", body, unit, I64(sums), I64(a), I64(b))

    def multiply_bytes(self, code: Code, unit: ir.Value, sums: int, a: int, b: int) -> None:
        """As the instruction does, in int32, which wraps. Source: Intel's manual, TDPBUSD."""
        self._call(code, "tile_bytes", self._rows_of_bytes, unit, I64(sums), I64(a), I64(b))

    def _rows_of_bytes(self, code: Code) -> None:
        b = code.builder
        unit, sums, left, right = code.arguments
        words = ir.VectorType(I32, ROWS)
        rows, row_bytes = _shape(code, unit, sums)
        fours = b.udiv(_shape(code, unit, left)[1], I64(4))
        columns = b.trunc(b.udiv(row_bytes, I64(4)), I32)
        lanes = ir.Constant(words, [I32(lane) for lane in range(ROWS)])
        inside = b.icmp_signed("<", lanes, code.broadcast(columns, ROWS))
        a, matrix, total = (_content(code, unit, number) for number in (left, right, sums))

        def row(m: ir.Value) -> None:
            def four(k: ir.Value, added: list[ir.Value]) -> list[ir.Value]:
                at = b.add(b.mul(m, I64(ROW_BYTES // 4)), k)
                value = code.broadcast(code.load(code.at(a, at, I32), I32), ROWS)
                factors = code.load(code.at(matrix, k, words), words)
                (products,) = added
                for byte in range(4):
                    up, down = code.splat(24 - 8 * byte, words), code.splat(24, words)
                    x = b.lshr(b.shl(value, up), down)
                    w = b.ashr(b.shl(factors, up), down)
                    products = b.add(products, b.mul(x, w))
                return [products]

            place = code.at(total, m, words)
            (result,) = code.for_range(I64(0), fours, four, [code.load(place, words)])
            code.store(b.select(inside, result, ir.Constant(words, None)), place)

        code.for_each(I64(0), rows, row)

    def _rows(self, code: Code) -> None:
        b = code.builder
        unit, sums, left, right = code.arguments
        words, vector = ir.VectorType(I32, ROWS), ir.VectorType(F32, ROWS)
        rows, row_bytes = _shape(code, unit, sums)
        pairs = b.udiv(_shape(code, unit, left)[1], I64(4))
        columns = b.trunc(b.udiv(row_bytes, I64(4)), I32)
        lanes = ir.Constant(words, [I32(lane) for lane in range(ROWS)])
        inside = b.icmp_signed("<", lanes, code.broadcast(columns, ROWS))
        a, matrix, total = (_content(code, unit, number) for number in (left, right, sums))
        zero = ir.Constant(vector, None)

        def halves(value: ir.Value) -> list[ir.Value]:
            first = b.shl(value, code.splat(16, words))
            second = b.and_(value, code.splat(-65536, words))
            return [b.bitcast(half, vector) for half in (first, second)]

        def row(m: ir.Value) -> None:
            def pair(k: ir.Value, added: list[ir.Value]) -> list[ir.Value]:
                at = b.add(b.mul(m, I64(ROW_BYTES // 4)), k)
                value = code.broadcast(code.load(code.at(a, at, I32), I32), ROWS)
                factors = code.load(code.at(matrix, k, words), words)
                return [
                    code.fma(x, y, products)
                    for x, y, products in zip(halves(value), halves(factors), added, strict=True)
                ]

            first, second = code.for_range(I64(0), pairs, pair, [zero, zero])
            place = code.at(total, m, vector)
            result = b.fadd(code.load(place, vector), b.fadd(first, second))
            code.store(b.select(inside, result, zero), place)

        code.for_each(I64(0), rows, row)

    def _clear(self, code: Code, place: ir.Value, rows: int) -> None:
        words = ir.VectorType(I32, ROW_BYTES // 4)
        zero = ir.Constant(words, None)
        code.for_each(0, rows, lambda row: code.store(zero, code.at(place, row, words)))

    def _copy(
        self,
        code: Code,
        unit: ir.Value,
        number: ir.Value,
        source: tuple[ir.Value, ir.Value],
        target: tuple[ir.Value, ir.Value],
    ) -> None:
        """Copies a tile's rows between places, each an address with a stride in bytes."""
        b = code.builder
        rows, row_bytes = _shape(code, unit, number)

        def row(m: ir.Value) -> None:
            read, write = (
                code.at(place, b.mul(m, stride), BYTE) for place, stride in (source, target)
            )

            def word(n: ir.Value) -> None:
                pair = ir.VectorType(I16, 2)  # of bf16, which need not start at a word
                code.store(code.load(code.at(read, n, pair), pair), code.at(write, n, pair))

            code.for_each(I64(0), b.udiv(row_bytes, I64(4)), word)

        code.for_each(I64(0), rows, row)

    def _call(
        self, code: Code, name: str, body: Callable[[Code], None], *arguments: ir.Value
    ) -> None:
        """Calls a function, which ``body`` writes where the module has none of this name yet."""
        function = code.module.globals.get(name)
        if function is None:
            inside = Code(code.module, name, [value.type for value in arguments]).internal()
            body(inside)
            function = inside.end()
        code.builder.call(function, arguments)


def configuration(shapes: Sequence[TileShape]) -> bytearray:
    """Returns the bytes that ldtilecfg reads: palette 1, at 16 the bytes of a row of each tile in
    16 bits, at 48 its rows in 8. Source: Intel's manual, volume 2, LDTILECFG."""
    content = bytearray(_CONFIG_BYTES)
    content[0] = _PALETTE
    for tile, shape in enumerate(shapes):
        content[_COLUMNS_AT + 2 * tile] = shape.row_bytes
        content[_ROWS_AT + tile] = shape.rows
    return content


def _configuration(code: Code, shapes: Sequence[TileShape]) -> ir.Value:
    """Returns the address of a configuration, a constant of the module."""
    kind = ir.ArrayType(BYTE, _CONFIG_BYTES)
    name = "tile_configuration"
    constant = ir.GlobalVariable(code.module, kind, code.module.get_unique_name(name))
    constant.linkage, constant.global_constant = "internal", True
    constant.initializer = ir.Constant(kind, configuration(shapes))
    return code.at(constant, 0, BYTE)


def _shape(code: Code, unit: ir.Value, number: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Returns a tile's rows and bytes of a row, as it is configured."""
    b = code.builder
    columns = code.load(code.at(code.at(unit, _COLUMNS_AT, BYTE), number, I16), I16)
    rows = code.load(code.at(code.at(unit, _ROWS_AT, BYTE), number, BYTE), BYTE)
    return b.zext(rows, I64), b.zext(columns, I64)


def _content(code: Code, unit: ir.Value, number: ir.Value) -> ir.Value:
    b = code.builder
    return code.at(unit, b.add(b.mul(number, I64(_TILE_BYTES)), I64(_CONFIG_BYTES)), BYTE)


def _count(stride: int | ir.Value) -> ir.Value:
    return I64(stride) if isinstance(stride, int) else stride
