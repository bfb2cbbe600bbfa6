"""The code of resizing: rows of output pixels from one or two rows of the input."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I32, I64
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.windows.task import PartCode, SharedTask, new_module


class ResizeTask(SharedTask):
    """Addresses and sizes of a resizing. A unit is a row of output pixels. The tables hold, for
    each output of an axis, two places in the input and what the pixels there are multiplied by."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "y", "row_places", "row_weights", "column_places", "column_weights")
        ),
        *(
            (name, ctypes.c_int64)
            for name in ("height", "width", "channels", "x_pitch", "y_pitch", "rows", "columns")
        ),
    )


@dataclass(frozen=True)
class ResizeSpecial:
    """All that decides a kernel: the mode, and the channels of a vector, which are fewer than its
    lanes where the image has no more."""

    mode: str
    lanes: int
    dtype: str
    isa: Isa


def emit_resize(special: ResizeSpecial) -> ir.Module:
    """Returns a module with ``run(task)``; ``task`` points to a ResizeTask."""
    return _Emitter(special).emit()


class _Emitter:
    def __init__(self, special: ResizeSpecial) -> None:
        self.special, self.isa = special, special.isa
        self.element = ELEMENTS[special.dtype]
        self.tail = None if special.lanes == special.isa.lanes else special.lanes
        self.part = PartCode(new_module(), ResizeTask)
        self.code = self.part.code
        fields = self.part.fields
        names = [name for name, kind in ResizeTask._fields_ if kind is ctypes.c_int64]
        self.size = {name: fields.count(name) for name in names}
        names = [name for name, kind in ResizeTask._fields_ if kind is ctypes.c_void_p]
        self.place = {name: fields.address(name) for name in names}

    def emit(self) -> ir.Module:
        self.code.for_each(self.part.first, self.part.last, self._row)
        return self.part.end()

    def _row(self, unit: ir.Value) -> None:
        """Emits a row of output pixels."""
        code, b, size = self.code, self.code.builder, self.size
        image, row = b.sdiv(unit, size["rows"]), b.srem(unit, size["rows"])
        above = b.mul(image, size["height"])
        lines = [
            self._pixel("x", b.mul(b.add(above, at), size["width"]), "x_pitch")
            for at in self._places("row", row)
        ]
        target = self._pixel("y", b.mul(unit, size["columns"]), "y_pitch")
        weights = self._weights("row", row)

        def pixel(column: ir.Value) -> None:
            apart = [b.mul(at, size["x_pitch"]) for at in self._places("column", column)]
            sources = [
                [code.at(line, offset, self.element.type) for offset in apart] for line in lines
            ]
            place = code.at(target, b.mul(column, size["y_pitch"]), self.element.type)
            if self.special.mode == "nearest":
                self._each_vector(lambda at: self._copy(sources[0][0], place, at))
                return
            across = self._weights("column", column)
            self._each_vector(lambda at: self._mix(sources, weights, across, place, at))

        code.for_each(I64(0), size["columns"], pixel)

    def _copy(self, source: ir.Value, target: ir.Value, at: ir.Value) -> None:
        """Emits copying a vector of channels, bit by bit."""
        kind = I32 if self.element.type is F32 else self.element.type
        vector = ir.VectorType(kind, self.isa.lanes)
        value = self.code.load(self.code.at(source, at, kind), vector, self.tail)
        self.code.store(value, self.code.at(target, at, kind), self.tail)

    def _mix(
        self,
        sources: Sequence[Sequence[ir.Value]],
        weights: Sequence[ir.Value],
        across: Sequence[ir.Value],
        target: ir.Value,
        at: ir.Value,
    ) -> None:
        """Emits a vector of channels: of two columns in each of two rows, then of these."""
        code, element = self.code, self.element

        def pair(first: ir.Value, second: ir.Value, factors: Sequence[ir.Value]) -> ir.Value:
            return code.fma(second, factors[1], code.builder.fmul(first, factors[0]))

        def load(start: ir.Value) -> ir.Value:
            place = code.at(start, at, element.type)
            return element.load(code, place, self.isa.lanes, self.tail)

        upper, lower = (pair(load(row[0]), load(row[1]), across) for row in sources)
        place = code.at(target, at, element.type)
        element.store(code, self.isa, pair(upper, lower, weights), place, self.tail)

    def _each_vector(self, body: Callable[[ir.Value], None]) -> None:
        """Emits ``body`` for the first channel of each vector; the last one ends where the channels
        do, and has some of the one before."""
        code = self.code
        if self.tail is not None:
            body(I64(0))
            return
        end = code.builder.sub(self.size["channels"], I64(self.isa.lanes))
        code.for_each(
            I64(0),
            self.size["channels"],
            lambda at: body(code.least(at, end)),
            step=self.isa.lanes,
        )

    def _pixel(self, name: str, number: ir.Value, pitch: str) -> ir.Value:
        offset = self.code.builder.mul(number, self.size[pitch])
        return self.code.at(self.place[name], offset, self.element.type)

    def _places(self, axis: str, number: ir.Value) -> list[ir.Value]:
        pair = self._pair(f"{axis}_places", number, I64)
        return [self.code.load(self.code.at(pair, side, I64), I64) for side in (0, 1)]

    def _weights(self, axis: str, number: ir.Value) -> list[ir.Value]:
        pair = self._pair(f"{axis}_weights", number, F32)
        values = [self.code.load(self.code.at(pair, side, F32), F32) for side in (0, 1)]
        return [self.code.broadcast(value, self.isa.lanes) for value in values]

    def _pair(self, table: str, number: ir.Value, kind: ir.Type) -> ir.Value:
        return self.code.at(self.place[table], self.code.builder.mul(number, I64(2)), kind)
