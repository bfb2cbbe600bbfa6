"""The product of pixels by a matrix on a tile unit, and what is done in the shadow of its tiles.

A product of four tiles keeps the tile unit busy for some 64 cycles, in which the vector units are
free. What there is for them to do: the sums of the product before this one, which still have to be
activated and written (they are *drained*), and the source stage of the next tile of the layer. Each
step of a product does its share of both.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from dnnsep.codegen.dots.amx import PAIR, AmxDot
from dnnsep.codegen.dots.dp_bf16 import DpBf16
from dnnsep.codegen.lang.dtype import ByteElement, output_element
from dnnsep.codegen.lang.emit import BYTE, F32, I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.tiles import ROWS, TILES, TileShape, TileUnit
from dnnsep.codegen.stages.finish import ByteFinish
from dnnsep.codegen.stages.matmul import Matmul
from dnnsep.codegen.stages.residual import Residual
from dnnsep.codegen.task import load_field
from dnnsep.dtypes import PRECISIONS

# Tiles: sums are in the first four, pixels in the next two, weights in the last two.
_SUMS, _PIXELS, _WEIGHTS = 4, (4, 5), (6, 7)

# Bytes of the sums of a product: as many pixels and vectors as there are at most.
SUMS_BYTES = 2 * ROWS * AmxDot.vectors * ROWS * 4


class Shadow(ctypes.Structure):
    """What is to be done beside the products of a part.

    The sums of ``rows`` pixels, from the address ``drained`` on, are still to be finished by the
    ``table`` and written to ``y`` with what is at ``residual`` added; ``tail`` is 1 where they are
    of the last, narrower panel. The next product's sums go to ``free``.

    Of the source stage of the next tile the chores from ``chore`` to before ``chores`` are still to
    be done, into ``target``, its first run being ``begin``, from ``x``, ``packed`` and ``scale``;
    each step of a product adds ``rate`` to ``credit``, and CHORE of it pays for one. A chore is a
    group of the channels of a run of pixels.
    """

    _fields_ = (
        ("drained", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("begin", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("tail", ctypes.c_int64),
        ("chore", ctypes.c_int64),
        ("chores", ctypes.c_int64),
        ("rate", ctypes.c_int64),
        ("credit", ctypes.c_int64),
    )


# Bytes of a Shadow, filled up to a whole line; two places for sums follow it.
SHADOW_BYTES = -(-ctypes.sizeof(Shadow) // 64) * 64
CHORE = 1 << 16


def field(code: Code, shadow: ir.Value, name: str) -> ir.Value:
    """Emits reading a field of a Shadow."""
    kind = dict(Shadow._fields_)[name]
    return load_field(code, Shadow, shadow, name, POINTER if kind is ctypes.c_void_p else I64)


def set_field(code: Code, shadow: ir.Value, name: str, value: ir.Value | int) -> None:
    """Emits writing a field of a Shadow."""
    place = code.at(shadow, getattr(Shadow, name).offset, BYTE)
    code.store(I64(value) if isinstance(value, int) else value, place)


@dataclass(frozen=True)
class TileProduct:
    """Products of up to 32 pixels by panels, all pieces of a kernel having at least ``least``.

    The rows of pixels are ``stride`` elements apart and have ``depth`` channels; the output's are
    ``y_pitch`` apart, and the ``residual`` is added to the sums. ``panels`` are the output channels
    of a whole panel and of the last one, 0 where there is none that is narrower.
    ``overlap`` says whether the sums are drained in the shadow of the next product.
    """

    stage: Matmul
    isa: Isa
    dot: AmxDot
    unit: TileUnit
    stride: int
    depth: int
    least: int
    panels: tuple[int, int]
    y_pitch: int
    residual: Residual | None
    streaming: bool
    overlap: bool

    @property
    def rows(self) -> int:
        """Rows of a tile of pixels. A piece that has more is two tiles, of which the second one
        ends where the piece does: they have some rows in common where it is not twice as long, and
        no tile reaches beyond its piece."""
        return min(ROWS, self.least)

    @property
    def steps(self) -> int:
        return self.depth // self.dot.step_channels(self.depth)

    def shapes(self) -> list[TileShape]:
        """Returns the configuration of the tiles, the same for all products of a kernel."""
        taken, columns = self.dot.step_channels(self.depth), 4 * self.isa.lanes
        shapes = [TileShape(self.rows, columns)] * _SUMS
        shapes += [TileShape(self.rows, self.dot.bytes * taken)] * len(_PIXELS)
        shapes += [TileShape(taken // self.dot.k, columns)] * len(_WEIGHTS)
        assert len(shapes) == TILES
        return shapes

    def groups(self, pixels: int, columns: int) -> list[range]:
        """Returns the vectors of output channels that are multiplied at once, group by group."""
        vectors = -(-columns // self.isa.lanes)
        at_once = _SUMS if pixels <= self.rows else _SUMS // 2
        return [range(v, min(v + at_once, vectors)) for v in range(0, vectors, at_once)]

    def emit(
        self, module: ir.Module, pixels: int, columns: int, beside: ir.Function | None
    ) -> ir.Function:
        """Returns f(rows, weights, table, y, residual, shadow, unit), a product by a panel of so
        many output channels, whose sums it leaves to be drained; or drains, where they are not to
        overlap.

        ``beside`` is what ``emit_beside`` returned. Weights are as ``Matmul.pack`` has them. Sums
        run over the channels in order, from the bias on.
        """
        code = Code(module, f"tiles_{pixels}x{columns}", [POINTER] * 7).internal()
        rows, weights, table, y, residual, shadow, unit = code.arguments
        b, tiles = code.builder, self.unit
        vectors = -(-columns // self.isa.lanes)
        taken, lanes = self.dot.step_channels(self.depth), self.isa.lanes
        starts = [0] if pixels <= self.rows else [0, pixels - self.rows]
        groups = self.groups(pixels, columns)
        share = -(-2 * ROWS // (self.steps * len(groups)))  # rows that a step drains
        free = field(code, shadow, "free")
        for group in groups:
            sums = [(v, start) for v in group for start in starts]
            for tile, (v, _) in enumerate(sums):
                row = code.at(table, v * lanes * self.stage.finish.rows, F32)
                tiles.load(code, unit, tile, row, 0)

            def step(
                at: ir.Value, group: range = group, sums: list[tuple[int, int]] = sums
            ) -> None:
                channel = b.mul(at, I64(taken))
                for index, v in enumerate(group):
                    factors, pair = _WEIGHTS[index % 2], v // PAIR * PAIR
                    wide = min(PAIR, vectors - pair) * lanes  # output channels side by side
                    panel = code.at(weights, pair * lanes * self.depth, self.dot.element)
                    place = code.at(panel, b.mul(channel, I64(wide)), self.dot.element)
                    place = code.at(place, (v - pair) * lanes * self.dot.k, self.dot.element)
                    tiles.load(code, unit, factors, place, 4 * wide)
                    for half, start in enumerate(starts):
                        if index == 0:
                            first = code.at(rows, start * self.stride, self.dot.element)
                            place = code.at(first, channel, self.dot.element)
                            pitch = self.stride * self.dot.bytes
                            tiles.load(code, unit, _PIXELS[half], place, pitch)
                        total = sums.index((v, start))
                        self.dot.multiply(code, tiles, unit, total, _PIXELS[half], factors)
                if beside is not None:
                    b.call(beside, [shadow, I64(share)])

            code.for_each(0, self.steps, step)
            for tile, (v, start) in enumerate(sums):
                place = code.at(free, (start * vectors + v) * lanes, F32)
                tiles.store(code, unit, tile, place, vectors * lanes * 4)
        # What was drained meanwhile is free now.
        set_field(code, shadow, "free", self._start_of_drained(code, shadow, free))
        for name, value in (
            *(("drained", free), ("table", table), ("y", y)),
            ("residual", residual),
        ):
            set_field(code, shadow, name, value)
        set_field(code, shadow, "rows", pixels)
        set_field(code, shadow, "tail", int(columns == self.panels[1]))
        if not self.overlap:
            b.call(self.emit_drain(module), [shadow, I64(pixels)])
        return code.end()

    def _start_of_drained(self, code: Code, shadow: ir.Value, free: ir.Value) -> ir.Value:
        """Returns the other of the two places for sums, which follow the Shadow in memory."""
        b = code.builder
        first = code.at(shadow, SHADOW_BYTES, BYTE)
        is_first = b.icmp_unsigned("==", b.ptrtoint(free, I64), b.ptrtoint(first, I64))
        return b.select(is_first, code.at(first, SUMS_BYTES, BYTE), first)

    def emit_drain(self, module: ir.Module) -> ir.Function:
        """Returns f(shadow, count), which drains so many rows, or as many as there are."""
        known = module.globals.get("drain")
        if known is not None:
            return known
        code = Code(module, "drain", [POINTER, I64]).internal()
        shadow, count = code.arguments
        b = code.builder
        left = field(code, shadow, "rows")
        count = code.least(count, left)
        whole, tail = self.panels
        widths = [width for width in (whole, tail) if width]
        if len(widths) == 1:
            self._drain(code, shadow, count, widths[0])
        else:
            is_tail = b.icmp_signed("!=", field(code, shadow, "tail"), I64(0))
            with b.if_else(is_tail) as (yes, no):
                with yes:
                    self._drain(code, shadow, count, tail)
                with no:
                    self._drain(code, shadow, count, whole)
        set_field(code, shadow, "rows", b.sub(left, count))
        return code.end()

    def _drain(self, code: Code, shadow: ir.Value, count: ir.Value, columns: int) -> None:
        """Emits draining so many rows of a panel of so many output channels."""
        b, lanes, element = code.builder, self.isa.lanes, output_element(self.stage.dtype)
        vectors, size = -(-columns // lanes), PRECISIONS[self.stage.dtype].destination.bytes
        vector, finish = ir.VectorType(F32, lanes), self.stage.finish
        pitches = {
            "drained": vectors * lanes * 4,
            "y": self.y_pitch * size,
            "residual": self.residual.pitch * size if self.residual else 0,
        }
        starts = {name: field(code, shadow, name) for name in pitches}
        table = field(code, shadow, "table")

        def of_table(v: int, row: int) -> ir.Value:
            return code.load(code.at(table, v * finish.rows + row, vector), vector)

        # Read once: that stores do not overwrite the table is more than LLVM knows.
        known = {
            (v, row): of_table(v, row) for v in range(vectors) for row in range(1, finish.rows)
        }

        def table_row(v: int, row: int) -> ir.Value:
            return known[v, row]

        def one(row: ir.Value) -> None:
            sums, y, residual = (
                code.at(starts[name], b.mul(row, I64(pitch)), BYTE)
                for name, pitch in pitches.items()
            )

            def added(v: int) -> ir.Value:
                place = code.at(residual, v * lanes, element.type)
                return element.load(code, place, lanes, min(lanes, columns - v * lanes))

            totals = [
                code.load(code.at(sums, v, vector), ir.VectorType(self.dot.total, lanes))
                for v in range(vectors)
            ]
            if isinstance(finish, ByteFinish) and finish.to_bytes:
                assert isinstance(element, ByteElement)
                value = finish.bytes(code, totals, table_row, added if self.residual else None)
                # A pixel begins at a multiple of the size, which streaming needs.
                whole = self.stage.out_channels % (vectors * lanes) == 0 and vectors != 3
                streams = self.streaming and whole
                code.store(element.moved(code, value), y, columns, streams)
                return
            values = [
                finish.value(
                    code,
                    totals[v],
                    partial(table_row, v),
                    self.residual,
                    partial(added, v),
                )
                for v in range(vectors)
            ]
            self._write(code, values, y, columns)

        code.for_each(I64(0), count, one)
        for name, pitch in pitches.items():
            moved = code.at(starts[name], b.mul(count, I64(pitch)), BYTE)
            set_field(code, shadow, name, moved)

    def _write(self, code: Code, values: list[ir.Value], y: ir.Value, columns: int) -> None:
        """Writes a row of results: two vectors in one store of a whole line where they fill it."""
        lanes, element = self.isa.lanes, output_element(self.stage.dtype)
        at = 0
        while at < len(values):
            place = code.at(y, at * lanes, element.type)
            lined = self.dot.dtype == "bf16" and self.isa.has("avx512bf16")
            lined = lined and (at + 2) * lanes <= columns
            if self.streaming:  # such a store needs an address that is a multiple of its size
                lined = lined and self.stage.out_channels % (2 * lanes) == 0
            if lined:
                value = DpBf16.converted(code, self.isa, values[at], values[at + 1])
                code.store(value, place, streaming=self.streaming)
                at += 2
                continue
            there = min(lanes, columns - at * lanes)
            element.store(code, self.isa, values[at], place, there, self.streaming)
            at += 1

    def emit_beside(self, module: ir.Module, source: ir.Function | None) -> ir.Function | None:
        """Returns f(shadow, rows), which each step of a product calls: it drains so many rows, and
        does the chores of the source stage that fall to the step, each by ``source(shadow)``; None
        where nothing overlaps."""
        if not self.overlap:
            return None
        code = Code(module, "beside", [POINTER, I64]).internal()
        shadow, rows = code.arguments
        b = code.builder
        waiting = b.icmp_signed(">", field(code, shadow, "rows"), I64(0))
        code.when(waiting, lambda: b.call(self.emit_drain(module), [shadow, rows]))
        if source is not None:
            credit = b.add(field(code, shadow, "credit"), field(code, shadow, "rate"))
            due = b.ashr(credit, I64(CHORE.bit_length() - 1))
            left = b.sub(field(code, shadow, "chores"), field(code, shadow, "chore"))
            code.for_each(I64(0), code.least(due, left), lambda _: b.call(source, [shadow]))
            set_field(code, shadow, "credit", b.and_(credit, I64(CHORE - 1)))
        return code.end()
