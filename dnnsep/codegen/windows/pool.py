"""Max and average pooling of channels-last images."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from llvmlite import ir

from dnnsep.activations import Exact
from dnnsep.codegen import team
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I32, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.rowwise.operators import OPERATORS
from dnnsep.codegen.task import load_field
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles
from dnnsep.problem import Pair

# So many vectors of channels are pooled at once, to hide how long an operation takes.
_AT_ONCE = 4


@dataclass(frozen=True)
class Pool:
    """Each output pixel is the largest, or the mean, of what its window meets of the image, channel
    by channel.

    ``kind`` is "max" or "mean". ``padding`` is (above, left): that the output may need more below
    and right is a matter of its size. A mean counts what is outside of the image, but inside of its
    padding, as zeros where ``counts_padding`` says so. NaN makes NaN.
    """

    kind: str
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    counts_padding: bool
    channels: int
    dtype: str
    isa: Isa

    def naive(self, x: Exact, out_size: Pair) -> Exact:
        """Returns the result (N, C, OH, OW) on x, (N, C, H, W), in float64, by the definition."""
        y = np.zeros((*x.shape[:2], *out_size))
        for row in range(out_size[0]):
            for column in range(out_size[1]):
                rows, of_rows = self._met(0, row, x.shape[2])
                columns, of_columns = self._met(1, column, x.shape[3])
                window = x[:, :, rows][:, :, :, columns]
                if self.kind == "max":
                    y[:, :, row, column] = window.max((2, 3))
                else:
                    count = of_rows * of_columns
                    if not self.counts_padding:
                        count = len(rows) * len(columns)
                    y[:, :, row, column] = window.sum((2, 3)) / count
        return y

    def _met(self, axis: int, place: int, size: int) -> tuple[list[int], int]:
        """Returns what an output's window meets of an axis, and the window's size inside of the
        padding."""
        start = place * self.stride[axis] - self.padding[axis]
        taps = [start + tap * self.dilation[axis] for tap in range(self.kernel[axis])]
        inside = min(start + self.kernel[axis], size + self.padding[axis]) - start
        return [tap for tap in taps if 0 <= tap < size], inside


class PoolTask(ctypes.Structure):
    """Addresses of the input, the result, and OpenMP's functions that tell a thread its number and
    its team's size; sizes in pixels, and pitches in elements from one pixel to the next."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("thread_number", ctypes.c_void_p),
        ("thread_count", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("out_height", ctypes.c_int64),
        ("out_width", ctypes.c_int64),
        ("x_pitch", ctypes.c_int64),
        ("y_pitch", ctypes.c_int64),
    )


@dataclass(frozen=True)
class PoolStep:
    """A pooling of a batch of images of (height, width) into images of ``out_size``, for a team of
    so many threads. Its operands are x and y."""

    special: Pool
    batch: int
    size: Pair
    out_size: Pair
    x_pitch: int
    y_pitch: int
    threads: int

    @cached_property
    def kernel(self) -> Function:
        """The compiled kernel."""
        return _compiled(self.special)

    @property
    def parts(self) -> int:
        """How many threads can share the work: rows of the output."""
        return min(self.threads, self.batch * self.out_size[0])

    @property
    def scratch_bytes(self) -> int:
        """It needs no scratch memory."""
        return 0

    def task(self, scratch: int) -> PoolTask:
        """Returns a new task; the addresses of its operands are still 0."""
        number, count = (
            team.address_of(f"omp_get_{name}") for name in ("thread_num", "num_threads")
        )
        return PoolTask(
            thread_number=number,
            thread_count=count,
            rows=self.batch * self.out_size[0],
            height=self.size[0],
            width=self.size[1],
            out_height=self.out_size[0],
            out_width=self.out_size[1],
            x_pitch=self.x_pitch,
            y_pitch=self.y_pitch,
        )


@lru_cache(64)
def _compiled(special: Pool) -> Function:
    """Returns the kernel, from the disk where it is there."""
    key = f"{generator()} {special}"
    code = cachefiles.load("kernels", key)
    if code is None:
        code = machine_code(_Emitter(special).emit(), special.isa.target)
        cachefiles.save("kernels", key, code)
    return Function(code, "run", [ctypes.c_void_p])


@dataclass(frozen=True)
class _Axis:
    """What an output's window meets along an axis: the number of the first tap inside of the image
    and the one after the last, and where tap 0 is; how many count for a mean."""

    first: ir.Value
    last: ir.Value
    start: ir.Value
    counted: ir.Value


class _Emitter:
    """Emits ``run(task)``, which a team of threads calls at once: each does every n-th row."""

    def __init__(self, special: Pool) -> None:
        self.of, self.isa = special, special.isa
        self.module = ir.Module()
        self.module.triple = ""
        self.code = Code(self.module, "run", [POINTER])
        self.element = ELEMENTS[special.dtype]
        self.vector = ir.VectorType(F32, self.isa.lanes)

    def emit(self) -> ir.Module:
        code, b = self.code, self.code.builder
        (task,) = code.arguments

        def field(name: str, kind: ir.Type = I64) -> ir.Value:
            return load_field(code, PoolTask, task, name, kind)

        x, y = field("x", POINTER), field("y", POINTER)
        number, team_size = (
            b.sext(code.call_address(field(name, POINTER), [], I32), I64)
            for name in ("thread_number", "thread_count")
        )
        height, width, out_height, out_width, x_pitch, y_pitch = map(
            field, ("height", "width", "out_height", "out_width", "x_pitch", "y_pitch")
        )

        def one_row(row: ir.Value) -> None:
            image, out_row = b.sdiv(row, out_height), b.srem(row, out_height)
            vertical = self._axis(0, out_row, height)
            top = b.mul(image, height)

            def one_pixel(column: ir.Value) -> None:
                horizontal = self._axis(1, column, width)
                pixel = b.add(b.mul(row, out_width), column)
                target = code.at(y, b.mul(pixel, y_pitch), self.element.type)
                scale = self._scale(vertical, horizontal)

                def source(i: ir.Value, j: ir.Value) -> ir.Value:
                    line = b.add(vertical.start, b.mul(i, I64(self.of.dilation[0])))
                    place = b.add(horizontal.start, b.mul(j, I64(self.of.dilation[1])))
                    line = b.add(top, line)
                    place = b.add(b.mul(line, width), place)
                    return code.at(x, b.mul(place, x_pitch), self.element.type)

                self._channels(vertical, horizontal, source, target, scale)

            code.for_each(I64(0), out_width, one_pixel)

        code.for_each(number, field("rows"), one_row, step=team_size)
        code.end()
        return self.module

    def _axis(self, axis: int, place: ir.Value, size: ir.Value) -> _Axis:
        code, b, of = self.code, self.code.builder, self.of
        step, taps = of.dilation[axis], I64(of.kernel[axis])
        start = b.sub(b.mul(place, I64(of.stride[axis])), I64(of.padding[axis]))
        hidden = code.most(I64(0), b.sub(I64(0), start))
        first = b.sdiv(b.add(hidden, I64(step - 1)), I64(step))
        left = code.most(I64(0), b.sub(size, start))
        last = code.least(taps, b.sdiv(b.add(left, I64(step - 1)), I64(step)))
        padded = b.sub(b.add(size, I64(of.padding[axis])), start)
        counted = code.least(taps, padded) if of.counts_padding else b.sub(last, first)
        return _Axis(first, last, start, counted)

    def _scale(self, vertical: _Axis, horizontal: _Axis) -> ir.Value | None:
        """Returns what sums are multiplied by to be means."""
        if self.of.kind == "max":
            return None
        b = self.code.builder
        count = b.sitofp(b.mul(vertical.counted, horizontal.counted), F32)
        return self.code.broadcast(b.fdiv(ir.Constant(F32, 1.0), count), self.isa.lanes)

    def _channels(
        self,
        vertical: _Axis,
        horizontal: _Axis,
        source: Callable[[ir.Value, ir.Value], ir.Value],
        target: ir.Value,
        scale: ir.Value | None,
    ) -> None:
        """Emits one output pixel: groups of vectors of channels, then the rest."""
        lanes = self.isa.lanes
        vectors, tail = divmod(self.of.channels, lanes)

        def group(channel: ir.Value, count: int, there: int | None) -> None:
            self._group(vertical, horizontal, source, target, scale, channel, count, there)

        whole = vectors // _AT_ONCE * _AT_ONCE
        step = lanes * _AT_ONCE
        self.code.for_each(
            I64(0), I64(whole * lanes), lambda at: group(at, _AT_ONCE, None), step=step
        )
        if vectors > whole:
            group(I64(whole * lanes), vectors - whole, None)
        if tail:
            group(I64(vectors * lanes), 1, tail)

    def _group(
        self,
        vertical: _Axis,
        horizontal: _Axis,
        source: Callable[[ir.Value, ir.Value], ir.Value],
        target: ir.Value,
        scale: ir.Value | None,
        channel: ir.Value,
        count: int,
        there: int | None,
    ) -> None:
        """Emits some vectors of channels of an output pixel; of a single one maybe just the first
        lanes."""
        code, lanes = self.code, self.isa.lanes
        combine = OPERATORS["maximum" if self.of.kind == "max" else "add"].emit
        neutral = float("-inf") if self.of.kind == "max" else 0.0

        def row(i: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            def tap(j: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
                place = code.at(source(i, j), channel, self.element.type)
                for v in range(count):
                    at = code.at(place, v * lanes, self.element.type)
                    value = self.element.load(code, at, lanes, there)
                    values[v] = combine(code, values[v], value)
                return values

            return code.for_range(horizontal.first, horizontal.last, tap, values)

        start = [code.splat(neutral, self.vector)] * count
        values = code.for_range(vertical.first, vertical.last, row, start)
        for v, value in enumerate(values):
            result = value if scale is None else code.builder.fmul(value, scale)
            at = code.at(code.at(target, channel, self.element.type), v * lanes, self.element.type)
            self.element.store(code, self.isa, result, at, there)
