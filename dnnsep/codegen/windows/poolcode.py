"""The code of pooling: runs of output pixels that share the columns under their kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.lang.dtype import TENSOR_ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.windows.task import PartCode, SharedTask, new_module

# The most output pixels whose columns are kept in registers at once, and the vectors of channels
# that a border pixel's loop takes at once, each with a sum of its own.
_RUN, _AT_ONCE = 4, 4
# Registers that are not for columns.
_SPARE = 4


class PoolTask(SharedTask):
    """Addresses and sizes of a pooling. A unit is a row of output pixels in one of ``groups`` of
    ``vectors`` of channels. Outputs from ``inner_first`` to before ``inner_last`` have all columns
    of their kernels in the image."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("height", "width", "channels", "x_pitch", "y_pitch", "groups", "vectors"),
                *("rows", "columns", "inner_first", "inner_last", "kernel", "stride"),
                *("padding", "padding_columns", "dilation", "counts_pad"),
            )
        ),
    )


@dataclass(frozen=True)
class PoolSpecial:
    """All that decides a kernel: the columns of the pooling's kernel, and the channels of a vector,
    which are fewer than its lanes where the image has no more."""

    kind: str
    kernel: int
    stride: int
    dilation: int
    lanes: int
    dtype: str
    isa: Isa

    @property
    def run(self) -> int:
        """How many output pixels are computed at once; 0 where registers do not hold the columns of
        a single one."""
        room = self.isa.registers - _SPARE
        return next((n for n in range(_RUN, 0, -1) if len(self.columns(n)) <= room), 0)

    def columns(self, pixels: int) -> list[int]:
        """Returns the columns under the kernels of neighbouring output pixels, from the first."""
        return sorted(
            {p * self.stride + k * self.dilation for p in range(pixels) for k in range(self.kernel)}
        )


@dataclass(frozen=True)
class _Row:
    """A row of output pixels: where its image and it begin, the row of the image that the kernel's
    first row is at, the rows of the kernel in the image, and the channels."""

    image: ir.Value
    target: ir.Value
    top: ir.Value
    taps: tuple[ir.Value, ir.Value]
    counted: ir.Value
    vectors: tuple[ir.Value, ir.Value]


def emit_pool(special: PoolSpecial) -> ir.Module:
    """Returns a module with ``run(task)``; ``task`` points to a PoolTask."""
    return _Emitter(special).emit()


class _Emitter:
    def __init__(self, special: PoolSpecial) -> None:
        self.special, self.isa = special, special.isa
        self.element = TENSOR_ELEMENTS[special.dtype]
        self.vector = ir.VectorType(F32, special.isa.lanes)
        self.tail = None if special.lanes == special.isa.lanes else special.lanes
        self.part = PartCode(new_module(), PoolTask)
        self.code = self.part.code
        names = [name for name, kind in PoolTask._fields_ if kind is ctypes.c_int64]
        self.size = {name: self.part.fields.count(name) for name in names}
        self.x, self.y = (self.part.fields.address(name) for name in ("x", "y"))
        self.neutral = self.code.splat(float("-inf") if special.kind == "max" else 0.0, self.vector)

    def emit(self) -> ir.Module:
        self.code.for_each(self.part.first, self.part.last, self._unit)
        return self.part.end()

    def _unit(self, unit: ir.Value) -> None:
        b, size = self.code.builder, self.size
        row, group = b.sdiv(unit, size["groups"]), b.srem(unit, size["groups"])
        image, out_row = b.sdiv(row, size["rows"]), b.srem(row, size["rows"])
        vectors = [
            b.sdiv(b.mul(n, size["vectors"]), size["groups"]) for n in (group, b.add(group, I64(1)))
        ]
        top = b.sub(b.mul(out_row, size["stride"]), size["padding"])
        taps = self._inside(top, size["height"], size["kernel"], size["dilation"])
        rows = b.mul(image, size["height"])
        source = self._pixel(self.x, b.mul(rows, size["width"]), size["x_pitch"])
        target = self._pixel(self.y, b.mul(row, size["columns"]), size["y_pitch"])
        beyond = b.add(size["height"], size["padding"])
        counted = self._counted(top, beyond, size["kernel"], taps)
        self._row(_Row(source, target, top, taps, counted, (vectors[0], vectors[1])))

    def _pixel(self, start: ir.Value, number: ir.Value, pitch: ir.Value) -> ir.Value:
        return self.code.at(start, self.code.builder.mul(number, pitch), self.element.type)

    def _inside(
        self, start: ir.Value, size: ir.Value, kernel: ir.Value, dilation: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Returns the first tap of a kernel's axis inside the image, and the one after the last."""
        code, b = self.code, self.code.builder
        less = b.sub(dilation, I64(1))
        first = code.most(I64(0), b.sdiv(b.sub(less, start), dilation))
        last = code.least(kernel, b.sdiv(b.add(b.sub(size, start), less), dilation))
        return first, last

    def _counted(
        self,
        start: ir.Value,
        beyond: ir.Value,
        kernel: ir.Value,
        taps: tuple[ir.Value, ir.Value],
    ) -> ir.Value:
        """Returns how many taps of an axis a mean is divided by."""
        b = self.code.builder
        padded = self.code.least(kernel, b.sub(beyond, start))
        counts_pad = b.icmp_signed("!=", self.size["counts_pad"], I64(0))
        return b.select(counts_pad, padded, b.sub(taps[1], taps[0]))

    def _row(self, row: _Row) -> None:
        """Emits a row of output pixels: runs inside, the last of which ends where the inside does,
        and single pixels at the borders."""
        code, b, size = self.code, self.code.builder, self.size
        run = self.special.run
        first, last = size["inner_first"], size["inner_last"]
        if run:
            there = b.icmp_signed(">=", b.sub(last, first), I64(run))
            last_run = b.sub(last, I64(run))
            first = b.select(there, first, size["columns"])
            last = b.select(there, last, first)
            code.for_each(
                first, last, lambda at: self._run(row, code.least(at, last_run)), step=run
            )
        else:
            first = last = size["columns"]
        code.for_each(I64(0), first, lambda at: self._border(row, at))
        code.for_each(last, size["columns"], lambda at: self._border(row, at))

    def _run(self, row: _Row, column: ir.Value) -> None:
        """Emits neighbouring pixels: columns first, then what each pixel has of them."""
        code, b, special = self.code, self.code.builder, self.special
        columns = special.columns(special.run)
        left = b.sub(b.mul(column, I64(special.stride)), self.size["padding_columns"])
        count = b.mul(row.counted, I64(special.kernel))
        scale = self._reciprocal(count)
        begin = self._source(row, left)
        target = self._pixel(row.target, column, self.size["y_pitch"])

        def channels(at: ir.Value) -> None:
            def one(tap: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                line = self._line(begin, tap, at)
                places = (self._pixel(line, I64(c), self.size["x_pitch"]) for c in columns)
                return [
                    self._combine(total, self._load(place))
                    for total, place in zip(sums, places, strict=True)
                ]

            sums = dict(
                zip(
                    columns,
                    code.for_range(*row.taps, one, [self.neutral] * len(columns)),
                    strict=True,
                )
            )
            for pixel in range(special.run):
                taps = [
                    sums[pixel * special.stride + k * special.dilation]
                    for k in range(special.kernel)
                ]
                place = self._pixel(target, I64(pixel), self.size["y_pitch"])
                self._store(self._all(taps), scale, code.at(place, at, self.element.type))

        self._each_vector(row, 1, lambda places: channels(places[0]))

    def _border(self, row: _Row, column: ir.Value) -> None:
        """Emits one pixel, tap by tap of those in the image."""
        code, b, special, size = self.code, self.code.builder, self.special, self.size
        left = b.sub(b.mul(column, I64(special.stride)), size["padding_columns"])
        kernel, dilation = I64(special.kernel), I64(special.dilation)
        taps = self._inside(left, size["width"], kernel, dilation)
        beyond = b.add(size["width"], size["padding_columns"])
        count = b.mul(row.counted, self._counted(left, beyond, kernel, taps))
        scale = self._reciprocal(count)
        begin = self._source(row, left)
        target = self._pixel(row.target, column, size["y_pitch"])

        def channels(places: Sequence[ir.Value]) -> None:
            def of_row(tap: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                line = self._line(begin, tap, I64(0))

                def of_column(k: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                    pixel = self._pixel(line, b.mul(k, dilation), size["x_pitch"])
                    return [
                        self._combine(total, self._load(code.at(pixel, at, self.element.type)))
                        for total, at in zip(inner, places, strict=True)
                    ]

                return code.for_range(*taps, of_column, sums)

            sums = code.for_range(*row.taps, of_row, [self.neutral] * len(places))
            for total, at in zip(sums, places, strict=True):
                self._store(total, scale, code.at(target, at, self.element.type))

        self._each_vector(row, _AT_ONCE, channels)

    def _source(self, row: _Row, left: ir.Value) -> ir.Value:
        """Returns where in the image the kernel's first tap is; it may be outside."""
        b = self.code.builder
        number = b.add(b.mul(row.top, self.size["width"]), left)
        return self._pixel(row.image, number, self.size["x_pitch"])

    def _line(self, begin: ir.Value, tap: ir.Value, channel: ir.Value) -> ir.Value:
        """Returns where a row of the kernel begins, from where the first does."""
        b = self.code.builder
        rows = b.mul(tap, self.size["dilation"])
        line = self._pixel(begin, b.mul(rows, self.size["width"]), self.size["x_pitch"])
        return self.code.at(line, channel, self.element.type)

    def _each_vector(
        self, row: _Row, at_once: int, body: Callable[[Sequence[ir.Value]], None]
    ) -> None:
        """Emits ``body`` for the first channels of the row's vectors, so many at once. The last
        vector of all ends where the channels do, and has some of the one before."""
        code, b = self.code, self.code.builder
        if self.tail is not None:
            body([I64(0)])
            return
        lanes = I64(self.isa.lanes)
        end = b.sub(self.size["channels"], lanes)

        def some(count: int) -> Callable[[ir.Value], None]:
            def one(vector: ir.Value) -> None:
                numbers = [b.add(vector, I64(n)) for n in range(count)]
                body([code.least(b.mul(number, lanes), end) for number in numbers])

            return one

        first, last = row.vectors
        if at_once > 1:
            whole = b.mul(b.sdiv(b.sub(last, first), I64(at_once)), I64(at_once))
            middle = b.add(first, whole)
            code.for_each(first, middle, some(at_once), step=at_once)
            first = middle
        code.for_each(first, last, some(1))

    def _load(self, place: ir.Value) -> ir.Value:
        return self.element.load(self.code, place, self.isa.lanes, self.tail)

    def _store(self, value: ir.Value, scale: ir.Value | None, place: ir.Value) -> None:
        if scale is not None:
            value = self.code.builder.fmul(value, scale)
        self.element.store(self.code, self.isa, value, place, self.tail)

    def _reciprocal(self, count: ir.Value) -> ir.Value | None:
        """Returns what a sum is multiplied by to be a mean."""
        if self.special.kind == "max":
            return None
        b = self.code.builder
        value = b.fdiv(F32(1.0), b.sitofp(count, F32))
        return self.code.broadcast(value, self.isa.lanes)

    def _all(self, taps: Sequence[ir.Value]) -> ir.Value:
        total = taps[0]
        for tap in taps[1:]:
            total = self._combine(total, tap)
        return total

    def _combine(self, total: ir.Value, value: ir.Value) -> ir.Value:
        return (
            _largest(self.code, total, value)
            if self.special.kind == "max"
            else (self.code.builder.fadd(total, value))
        )


def _largest(code: Code, total: ir.Value, value: ir.Value) -> ir.Value:
    """Returns the larger one, NaN where either is: the comparison keeps the total's NaN."""
    b = code.builder
    larger = b.select(b.fcmp_ordered(">", value, total), value, total)
    return b.select(b.fcmp_unordered("uno", value, value), value, larger)
