"""The code of strided copies: units of a plane's rows and columns."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.lang.emit import I64, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.windows.copying import MOST_DIMENSIONS
from dnnsep.codegen.windows.shuffles import transposed, unzipped, zipped
from dnnsep.codegen.windows.task import PartCode, SharedTask, new_module

_AT_ONCE = 4


class CopyTask(SharedTask):
    """Addresses, sizes and strides of a copy. A unit is at most ``block3`` x ``block4`` x
    ``block5`` elements of the last three dimensions, which have ``blocks3`` x ``blocks4`` x
    ``blocks5`` of them."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        *((f"size{n}", ctypes.c_int64) for n in range(MOST_DIMENSIONS)),
        *((f"x_stride{n}", ctypes.c_int64) for n in range(MOST_DIMENSIONS)),
        *((f"y_stride{n}", ctypes.c_int64) for n in range(MOST_DIMENSIONS)),
        *((f"block{n}", ctypes.c_int64) for n in (3, 4, 5)),
        *((f"blocks{n}", ctypes.c_int64) for n in (3, 4, 5)),
    )


@dataclass(frozen=True)
class CopySpecial:
    """All that decides a kernel: the kind of its Layout, and of its planes' rows and columns how
    many a vector holds, which are fewer than its lanes where there are no more."""

    kind: str
    rows: int
    columns: int
    bytes: int
    isa: Isa

    @property
    def lanes(self) -> int:
        """How many elements a vector has."""
        return vector_lanes(self.kind, self.bytes, self.isa)


def vector_lanes(kind: str, size: int, isa: Isa) -> int:
    """Returns the elements, of so many bytes, of a vector: all that fit, but for a tile, which is a
    vector of vectors, no more than 16."""
    whole = isa.lanes * 4 // size
    return min(whole, 16) if kind == "tiles" else whole


@dataclass(frozen=True)
class _Plane:
    """Where a plane begins, and the ranges of its two dimensions."""

    x: ir.Value
    y: ir.Value
    rows: tuple[ir.Value, ir.Value]
    columns: tuple[ir.Value, ir.Value]


def emit_copy(special: CopySpecial) -> ir.Module:
    """Returns a module with ``run(task)``; ``task`` points to a CopyTask."""
    return _Emitter(special).emit()


class _Emitter:
    def __init__(self, special: CopySpecial) -> None:
        self.special, self.lanes = special, special.lanes
        self.element = ir.IntType(8 * special.bytes)
        self.vector = ir.VectorType(self.element, special.lanes)
        self.part = PartCode(new_module(), CopyTask)
        self.code: Code = self.part.code
        fields = self.part.fields
        self.x, self.y = fields.address("x"), fields.address("y")
        every = range(MOST_DIMENSIONS)
        self.size, self.x_stride, self.y_stride = (
            fields.counts(*(f"{name}{n}" for n in every))
            for name in ("size", "x_stride", "y_stride")
        )
        self.block = fields.counts("block3", "block4", "block5")
        self.blocks = fields.counts("blocks3", "blocks4", "blocks5")

    def emit(self) -> ir.Module:
        plane = {
            "rows": self._rows,
            "tiles": self._tiles,
            "zip": self._zip,
            "unzip": self._unzip,
            "elements": self._elements,
        }[self.special.kind]
        self.code.for_each(self.part.first, self.part.last, lambda unit: self._unit(unit, plane))
        return self.part.end()

    def _unit(self, unit: ir.Value, body: Callable[[_Plane], None]) -> None:
        """Emits the planes of a unit."""
        b = self.code.builder
        ranges = []
        for axis in (5, 4, 3):
            blocks, block = self.blocks[axis - 3], self.block[axis - 3]
            number, unit = b.srem(unit, blocks), b.sdiv(unit, blocks)
            start = b.mul(number, block)
            stop = self.code.least(b.add(start, block), self.size[axis])
            ranges.append((start, stop))
        x, y = self.x, self.y
        for axis in (2, 1, 0):
            number = b.srem(unit, self.size[axis]) if axis else unit
            unit = b.sdiv(unit, self.size[axis]) if axis else unit
            x = self._at(x, b.mul(number, self.x_stride[axis]))
            y = self._at(y, b.mul(number, self.y_stride[axis]))
        columns, rows, planes = ranges

        def plane(number: ir.Value) -> None:
            begin = self._at(x, b.mul(number, self.x_stride[3]))
            target = self._at(y, b.mul(number, self.y_stride[3]))
            body(_Plane(begin, target, rows, columns))

        self.code.for_each(*planes, plane)

    def _at(self, start: ir.Value, element: ir.Value) -> ir.Value:
        return self.code.at(start, element, self.element)

    def _in_rows(self, start: ir.Value, row: ir.Value, strides: list[ir.Value]) -> ir.Value:
        return self._at(start, self.code.builder.mul(row, strides[4]))

    def _in_columns(self, start: ir.Value, column: ir.Value, strides: list[ir.Value]) -> ir.Value:
        return self._at(start, self.code.builder.mul(column, strides[5]))

    def _steps(
        self, ends: tuple[ir.Value, ir.Value], size: ir.Value, body: Callable[[ir.Value], None]
    ) -> None:
        """Emits ``body`` for each vector of a range; the last one of a dimension ends where that
        does, and has some elements of the one before."""
        limit = self.code.builder.sub(size, I64(self.lanes))
        self.code.for_each(*ends, lambda at: body(self.code.least(at, limit)), step=self.lanes)

    def _rows(self, plane: _Plane) -> None:
        """Emits rows that lie together in both."""
        code, b, special = self.code, self.code.builder, self.special

        def row(number: ir.Value) -> None:
            source = self._in_rows(plane.x, number, self.x_stride)
            target = self._in_rows(plane.y, number, self.y_stride)

            def some(count: int, start: ir.Value, lanes: int | None = None) -> None:
                places = [b.add(start, I64(n * self.lanes)) for n in range(count)]
                values = [code.load(self._at(source, at), self.vector, lanes) for at in places]
                for at, value in zip(places, values, strict=True):
                    code.store(value, self._at(target, at), lanes)

            if special.columns < self.lanes:
                some(1, I64(0), special.columns)
                return
            first, last = plane.columns
            turn = _AT_ONCE * self.lanes
            middle = b.add(first, b.mul(b.sdiv(b.sub(last, first), I64(turn)), I64(turn)))
            code.for_each(first, middle, lambda at: some(_AT_ONCE, at), step=turn)
            self._steps((middle, last), self.size[5], lambda at: some(1, at))

        code.for_each(*plane.rows, row)

    def _tiles(self, plane: _Plane) -> None:
        """Emits squares, transposed in registers: rows of what is read are columns."""
        code, special, n = self.code, self.special, self.lanes

        def tile(row: ir.Value, column: ir.Value) -> None:
            source = self._at(self._in_columns(plane.x, column, self.x_stride), row)
            target = self._at(self._in_rows(plane.y, row, self.y_stride), column)
            lines: list[ir.Value] = []
            for number in range(n):
                place = self._in_columns(source, I64(number), self.x_stride)
                if number < special.columns:
                    lines.append(code.load(place, self.vector, special.rows))
                else:
                    lines.append(ir.Constant(self.vector, ir.Undefined))
            for number, value in enumerate(transposed(code, lines)[: special.rows]):
                place = self._in_rows(target, I64(number), self.y_stride)
                code.store(value, place, special.columns)

        def down(column: ir.Value) -> None:
            if special.rows < n:
                tile(I64(0), column)
            else:
                self._steps(plane.rows, self.size[4], lambda row: tile(row, column))

        if special.columns < n:
            down(I64(0))
        else:
            self._steps(plane.columns, self.size[5], down)

    def _zip(self, plane: _Plane) -> None:
        """Emits few rows of what is read, written as one."""
        code, b, count = self.code, self.code.builder, self.special.columns

        def some(row: ir.Value) -> None:
            starts = (self._in_columns(plane.x, I64(n), self.x_stride) for n in range(count))
            rows = [code.load(self._at(start, row), self.vector) for start in starts]
            target = self._at(plane.y, b.mul(row, I64(count)))
            for number, value in enumerate(zipped(code, rows)):
                code.store(value, self._at(target, I64(number * self.lanes)))

        self._steps(plane.rows, self.size[4], some)

    def _unzip(self, plane: _Plane) -> None:
        """Emits one row of what is read, written as few."""
        code, b, count = self.code, self.code.builder, self.special.rows

        def some(column: ir.Value) -> None:
            source = self._at(plane.x, b.mul(column, I64(count)))
            places = [self._at(source, I64(n * self.lanes)) for n in range(count)]
            vectors = [code.load(place, self.vector) for place in places]
            for number, value in enumerate(unzipped(code, vectors)):
                start = self._in_rows(plane.y, I64(number), self.y_stride)
                code.store(value, self._at(start, column))

        self._steps(plane.columns, self.size[5], some)

    def _elements(self, plane: _Plane) -> None:
        code = self.code

        def row(number: ir.Value) -> None:
            source = self._in_rows(plane.x, number, self.x_stride)
            target = self._in_rows(plane.y, number, self.y_stride)

            def one(column: ir.Value) -> None:
                place = self._in_columns(source, column, self.x_stride)
                value = code.builder.load(place, typ=self.element, align=self.special.bytes)
                where = self._in_columns(target, column, self.y_stride)
                code.builder.store(value, where, align=self.special.bytes)

            code.for_each(*plane.columns, one)

        code.for_each(*plane.rows, row)
