"""What one part of a plan does: tile by tile the source stage, then the product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from llvmlite import ir

from dnnsep.codegen.dots import VectorDot
from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.lang.emit import BYTE, F32, I64, POINTER, Code
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.places import Places
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.prefetch import Ahead, prefetch_for
from dnnsep.codegen.stages.base import Image, Taps
from dnnsep.codegen.stages.matmul import Met, Product
from dnnsep.codegen.task import range_of, share

# f(part, x, y, packed, scratch, residual, scale, pieces of a tile): what one part is done by.
PART = [I64, *[POINTER] * 6, I64]


class Part:
    """A range of pieces, tile by tile, times a range of panels."""

    signature: Sequence[ir.Type] = PART

    def __init__(
        self, module: ir.Module, layer: Layer, extent: Extent, plan: Plan, extras: Extras
    ) -> None:
        self.module, self.layer, self.extent = module, layer, extent
        self.plan, self.extras = plan, extras
        self.packing = Packing(layer, plan.vectors)
        self.finish_rows = layer.product.finish.rows if layer.product is not None else 0
        self.pitches, self.added = extras.pitches(layer), extras.added(layer)
        self.sink = layer.sink(self.pitches.y, self.added)
        panels = max(1, self.packing.panels // plan.channel_parts)
        self.prefetch = prefetch_for(layer, extent, plan, panels, self.pitches.x)
        self.ahead = Ahead(plan.ahead) if plan.ahead else None
        self.sources = self._source_functions()
        self.products: dict[tuple[int, int, Met | None], ir.Function] = {}
        self.code = Code(module, "part", self.signature).internal()
        self.part, *pointers, self.pieces = self.code.arguments[: len(PART)]
        self.x, self.y, self.packed, self.scratch, self.residual, self.scale = pointers
        self.tile = self.scratch
        self.places = Places(self.code, layer, extent, plan, self.pitches)

    def emit(self) -> ir.Function:
        plan, b = self.plan, self.code.builder
        total = I64(self.packing.panels)
        if plan.ranged:
            first, last = range_of(self.code, self.part)
            self._tiles(first, last, (I64(0), total))
            return self.code.end()
        by_pixels = b.sdiv(self.part, I64(plan.channel_parts))
        by_channels = b.srem(self.part, I64(plan.channel_parts))
        first, last = share(self.code, I64(plan.pieces), by_pixels, I64(plan.pixel_parts))
        panels = share(self.code, total, by_channels, I64(plan.channel_parts))
        self._tiles(first, last, panels)
        return self.code.end()

    def _tiles(self, first: ir.Value, last: ir.Value, panels: tuple[ir.Value, ir.Value]) -> None:
        """Emits the pieces [first, last) times the range of panels."""
        code, b = self.code, self.code.builder

        def one_tile(at: ir.Value) -> None:
            stop = code.least(b.add(at, self.pieces), last)
            if self.layer.product is None:
                more = [self.places.added(self.residual, at, I64(0))] if self.added else []
                self._fill(at, stop, self.places.output(self.y, at, I64(0)), *more)
            elif self.layer.source is None:
                self._multiply(at, stop, panels, lambda piece: self.places.pixel(self.x, piece))
            else:
                self._multiply(at, stop, panels, self._fill(at, stop, self.tile))

        code.for_each(first, last, one_tile, step=self.pieces)

    def _fill(
        self, first: ir.Value, last: ir.Value, target: ir.Value, *more: ir.Value
    ) -> Callable[[ir.Value], ir.Value]:
        """Emits the source for the pieces [first, last) into ``target``, a tile or the output, of
        which it is a single piece; ``more`` are its function's last arguments.

        Returns what says where in a tile a piece is.
        """
        begin, end = self._runs(first, last)
        given = (self.x, self.packed, self.scale)

        def one(run: ir.Value) -> None:
            slot = self._slot(self.code, target, self.code.builder.sub(run, begin))
            self._run(self.places, self.sources, given, run, slot, *more)

        self.code.for_each(begin, end, one)
        return self._in_tile(begin, target)

    def _runs(self, first: ir.Value, last: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Returns the range of what the source fills a tile of the pieces [first, last) by: short
        rows, or else pieces."""
        return self.places.rows_of(first, last) if self.plan.short_rows else (first, last)

    def _slot(self, code: Code, target: ir.Value, number: ir.Value) -> ir.Value:
        """Returns where the number-th run of a tile is in it."""
        pixels = self.places.out_width if self.plan.short_rows else self.plan.pixels
        elements = code.builder.mul(number, I64(pixels * self.sink.stride))
        return code.at(target, elements, self.sink.element)

    def _in_tile(self, begin: ir.Value, target: ir.Value) -> Callable[[ir.Value], ir.Value]:
        """Returns what says where a piece is in a tile that begins with a run."""
        code, b = self.code, self.code.builder
        if not self.plan.short_rows:
            return lambda piece: self._slot(code, target, b.sub(piece, begin))
        origin = b.mul(begin, I64(self.places.out_width))

        def slot(piece: ir.Value) -> ir.Value:
            pixel = b.sub(self.places.first_pixel(piece), origin)
            return code.at(target, b.mul(pixel, I64(self.sink.stride)), self.sink.element)

        return slot

    def _run(
        self,
        places: Places,
        functions: list[tuple[int, ir.Function]],
        given: tuple[ir.Value, ir.Value, ir.Value],
        run: ir.Value,
        slot: ir.Value,
        *more: ir.Value,
    ) -> None:
        """Emits the source for one run into its slot, from ``given``: x, packed, scale."""
        x, packed, scale = given
        row, place = (run, I64(0)) if self.plan.short_rows else places.row_and_place(run)
        above = places.above(row)
        source = places.input(x, row, above, place)
        weights = places.of_image(scale, row) if self.extras.scale else packed
        arguments = [source, weights, slot, *places.kernel_rows(above), *more]
        choose(places.code, place, functions, arguments)

    def _multiply(
        self,
        first: ir.Value,
        last: ir.Value,
        panels: tuple[ir.Value, ir.Value],
        rows_of: Callable[[ir.Value], ir.Value],
    ) -> None:
        """Emits the pieces [first, last) times each panel; a panel's weights are used by all of
        them before the next. ``rows_of`` says where what is multiplied of a piece begins."""
        code, b, packing = self.code, self.code.builder, self.packing

        def times(panel: ir.Value, columns: int) -> None:
            matrix = code.at(self.packed, packing.matrix, BYTE)
            weights = code.at(matrix, b.mul(panel, I64(packing.panel_bytes)), BYTE)
            channel = b.mul(panel, I64(packing.panel_channels))
            table = code.at(self.packed, packing.table, BYTE)
            table = code.at(table, b.mul(channel, I64(self.finish_rows)), F32)

            def one(piece: ir.Value) -> None:
                target = self.places.output(self.y, piece, channel)
                added = target
                if self.added:
                    added = self.places.added(self.residual, piece, channel)
                in_next_tile = b.add(piece, b.sub(last, first))
                fetched = self._fetched(in_next_tile, b.sub(panel, panels[0]))
                ahead = self._ahead(weights, b.sub(piece, first))
                arguments = [rows_of(piece), weights, table, target, added]
                self._call_product(piece, columns, [*arguments, *self._beside(fetched, ahead)])

            code.for_each(first, last, one)

        begin, end = panels
        whole = I64(packing.whole_panels)
        code.for_each(
            begin, code.least(end, whole), lambda panel: times(panel, packing.panel_channels)
        )
        if packing.tail_channels:
            there = b.icmp_signed(">", end, whole)
            code.when(there, lambda: times(whole, packing.tail_channels))

    def _call_product(self, piece: ir.Value, columns: int, arguments: list[ir.Value]) -> None:
        """Emits the product of a piece by so many columns."""
        value, sizes = self.places.sizes(piece)
        choices = [(end, self._product(pixels, columns)) for end, pixels in sizes]
        choose(self.code, value, choices, arguments)

    def _beside(self, fetched: ir.Value, ahead: ir.Value) -> list[ir.Value]:
        """Returns the last arguments of a product's function."""
        return [fetched, ahead]

    def _fetched(self, piece: ir.Value, number: ir.Value) -> ir.Value:
        """Returns where the number-th multiplication of a tile's piece fetches another tile's
        input."""
        if not self.prefetch:
            return self.x
        start = self.places.new_input(self.x, piece, self.prefetch.new_rows)
        return self.code.at(start, self.code.builder.mul(number, I64(self.prefetch.share)), BYTE)

    def _ahead(self, weights: ir.Value, number: ir.Value) -> ir.Value:
        """Returns where the number-th piece of a tile fetches the panel after the one at
        ``weights``."""
        if not self.ahead:
            return weights
        start = self.code.at(weights, self.packing.panel_bytes, BYTE)
        each = self.ahead.share(self.code, self.packing.panel_bytes, self.pieces)
        return self.code.at(start, self.code.builder.mul(number, each), BYTE)

    def _source_functions(self) -> list[tuple[int, ir.Function]]:
        """Returns (end, function): pieces of a row before ``end`` run the function, in order."""
        source, width = self.layer.source, self.extent.width
        if source is None:
            return []
        runs = [source.window.over(row, width) for row in self.plan.rows]
        functions = {
            taps: self._source_function(f"source_{number}", taps)
            for number, taps in enumerate(dict.fromkeys(runs))
        }
        ends: list[tuple[int, ir.Function]] = []
        end = 0
        for taps, group in groupby(runs):
            end += len(list(group))
            ends.append((end, functions[taps]))
        return ends

    def _source_function(self, name: str, taps: Taps) -> ir.Function:
        source, layer = self.layer.source, self.layer
        assert source is not None
        return source.emit(
            self.module,
            name,
            layer.isa,
            layer.dot,
            Image(self.extent.width, self.pitches.x),
            taps,
            self.sink,
            by_groups=self.plan.overlap,
        )

    def _product(self, pixels: int, columns: int, met: Met | None = None) -> ir.Function:
        key = (pixels, columns, met)
        if key not in self.products:
            self.products[key] = self._emit_product(*key)
        return self.products[key]

    def _emit_product(self, pixels: int, columns: int, met: Met | None) -> ir.Function:
        layer, stage = self.layer, self.layer.product
        assert stage is not None
        assert isinstance(layer.dot, VectorDot)
        return Product(
            stage,
            layer.isa,
            layer.dot,
            **self._rows(),
            pixels=pixels,
            columns=columns,
            y_pitch=self.pitches.y,
            prefetch=self.prefetch,
            ahead=self.ahead,
            residual=self.added,
            streaming=self.plan.streaming,
            met=met,
        ).emit(self.module, f"matmul_{len(self.products)}_{pixels}x{columns}")

    def _rows(self) -> dict[str, Any]:
        """Returns the stride and the depth of what is multiplied: a tile, or the input."""
        stage = self.layer.product
        assert stage is not None
        if self.layer.source is None:
            return {"stride": self.pitches.x, "depth": stage.channels}
        return {"stride": self.layer.tile_stride, "depth": self.layer.depth}


def choose(
    code: Code,
    value: ir.Value,
    choices: list[tuple[int, ir.Function]],
    arguments: list[ir.Value],
) -> None:
    """Emits a call of the first choice whose end is beyond the value."""
    b = code.builder
    (end, function), *others = choices
    if not others:
        b.call(function, arguments)
        return
    with b.if_else(b.icmp_signed("<", value, I64(end))) as (yes, no):
        with yes:
            b.call(function, arguments)
        with no:
            choose(code, value, others, arguments)
