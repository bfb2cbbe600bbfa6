"""The stages of a layer in one pass: what each thread runs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from llvmlite import ir

from dnnsep.codegen.extent import Extent
from dnnsep.codegen.lang.emit import BYTE, F32, I32, I64, POINTER, Code
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.places import Places
from dnnsep.codegen.plan import Plan
from dnnsep.codegen.prefetch import Ahead, prefetch_for
from dnnsep.codegen.stages.matmul import Product
from dnnsep.codegen.task import Task, load_field

# f(part, x, y, packed, tile, residual, scale, pieces of a tile): what one part is done by.
_PART = [I64, *[POINTER] * 6, I64]


@dataclass(frozen=True)
class Extras:
    """What a kernel takes beside x.

    ``residual``: values like the output's are added to the sums before the last activation.
    ``scale``: the input of a pointwise convolution is multiplied by a number for each image and
    channel.
    """

    residual: bool = False
    scale: bool = False

    def check(self, layer: Layer) -> None:
        """Raises ValueError where a kernel of the layer cannot take these."""
        if self.residual and layer.product is None:
            raise ValueError("residual: only a layer that sums over channels takes one")
        if self.scale and (layer.source is not None or layer.product is None):
            raise ValueError("scale: only a pointwise convolution takes one")


PLAIN = Extras()


def emit_kernel(layer: Layer, extent: Extent, plan: Plan, extras: Extras = PLAIN) -> ir.Module:
    """Returns a module with ``run(task)``, which a team of threads calls at once; any team does all
    parts.

    ``task`` points to a Task. Raises ValueError where the layer cannot take the extras.
    """
    extras.check(layer)
    if plan.gathers or extras.scale:
        layer = layer.gathered(extras.scale)
    module = ir.Module()
    module.triple = ""
    if layer.source is None and layer.product is None:
        part = _lone_stage(module, layer, extent, plan)
    else:
        part = _Part(module, layer, extent, plan, extras).emit()
    code = Code(module, "run", [POINTER])
    (task,), b = code.arguments, code.builder
    x, y, packed, scratch, number, count, residual, scale = (
        load_field(code, Task, task, name)
        for name, kind in Task._fields_
        if kind is ctypes.c_void_p
    )
    pieces, part_bytes = (load_field(code, Task, task, n, I64) for n in ("tile", "part_bytes"))
    mine, team = (b.sext(code.call_address(f, [], I32), I64) for f in (number, count))

    def one(at: ir.Value) -> None:
        tile = code.at(scratch, b.mul(at, part_bytes), BYTE)
        b.call(part, [at, x, y, packed, tile, residual, scale, pieces])

    code.for_each(mine, I64(plan.parts), one, step=team)
    if plan.streaming:  # such stores may come after whatever tells others of the result
        code.fence()
    code.end()
    return module


def _lone_stage(module: ir.Module, layer: Layer, extent: Extent, plan: Plan) -> ir.Function:
    """Returns the part of a layer whose only stage goes through its pieces by itself."""
    (stage,) = layer.stages
    code = Code(module, "part", _PART).internal()
    part, x, y, *_ = code.arguments
    first, last = _share(code, plan.pieces, part, plan.pixel_parts)
    stage.emit_pieces(code, layer.isa, extent.height * extent.width, x, y, first, last)
    return code.end()


def _share(code: Code, total: int, number: ir.Value, parts: int) -> tuple[ir.Value, ir.Value]:
    """Emits the first and the end of the number-th of so many equal shares of a total."""
    b = code.builder
    first, last = (
        b.sdiv(b.mul(n, I64(total)), I64(parts)) for n in (number, b.add(number, I64(1)))
    )
    return first, last


class _Part:
    """A range of pieces, tile by tile, times a range of panels."""

    def __init__(
        self, module: ir.Module, layer: Layer, extent: Extent, plan: Plan, extras: Extras
    ) -> None:
        self.module, self.layer, self.extent = module, layer, extent
        self.plan, self.extras = plan, extras
        self.packing = Packing(layer, plan.vectors)
        self.sink = layer.sink
        panels = max(1, self.packing.panels // plan.channel_parts)
        self.prefetch = prefetch_for(layer, extent, plan, panels)
        self.ahead = Ahead(plan.ahead) if plan.ahead else None
        self.sources = self._source_functions()
        self.products: dict[tuple[int, int], ir.Function] = {}
        self.code = Code(module, "part", _PART).internal()
        self.part, *pointers, self.pieces = self.code.arguments
        self.x, self.y, self.packed, self.tile, self.residual, self.scale = pointers
        self.places = Places(self.code, layer, extent, plan)

    def emit(self) -> ir.Function:
        code, plan, b = self.code, self.plan, self.code.builder
        by_pixels = b.sdiv(self.part, I64(plan.channel_parts))
        by_channels = b.srem(self.part, I64(plan.channel_parts))
        first, last = _share(code, plan.pieces, by_pixels, plan.pixel_parts)
        panels = _share(code, self.packing.panels, by_channels, plan.channel_parts)

        def one_tile(at: ir.Value) -> None:
            stop = code.least(b.add(at, self.pieces), last)
            if self.layer.product is None:
                self._fill(at, stop, self.places.output(self.y, at, I64(0)))
            elif self.layer.source is None:
                self._multiply(at, stop, panels, lambda piece: self.places.pixel(self.x, piece))
            else:
                self._multiply(at, stop, panels, self._fill(at, stop, self.tile))

        code.for_each(first, last, one_tile, step=self.pieces)
        return code.end()

    def _fill(
        self, first: ir.Value, last: ir.Value, target: ir.Value
    ) -> Callable[[ir.Value], ir.Value]:
        """Emits the source for the pieces [first, last) into ``target``, a tile or the output.

        Returns what says where in a tile a piece is.
        """
        code, b = self.code, self.code.builder

        def slot(number: ir.Value, pixels: int) -> ir.Value:
            elements = b.mul(number, I64(pixels * self.sink.stride))
            return code.at(target, elements, self.sink.element)

        def one_row(row: ir.Value, place: ir.Value, slot: ir.Value) -> None:
            above = self.places.above(row)
            source = self.places.input(self.x, row, above, place)
            weights = self.packed
            if self.extras.scale:
                weights = self.places.of_image(self.scale, row)
            arguments = [source, weights, slot, *self.places.kernel_rows(above)]
            self._choose(place, self.sources, arguments)

        if self.plan.short_rows:
            width = self.places.out_width
            top, bottom = self.places.rows_of(first, last)
            code.for_each(
                top, bottom, lambda row: one_row(row, I64(0), slot(b.sub(row, top), width))
            )
            origin = b.mul(top, I64(width))
            return lambda piece: slot(b.sub(self.places.first_pixel(piece), origin), 1)

        def slot_of(piece: ir.Value) -> ir.Value:
            return slot(b.sub(piece, first), self.plan.pixels)

        code.for_each(
            first, last, lambda piece: one_row(*self.places.row_and_place(piece), slot_of(piece))
        )
        return slot_of

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
            bias = code.at(code.at(self.packed, packing.bias, BYTE), channel, F32)

            def one(piece: ir.Value) -> None:
                target = self.places.output(self.y, piece, channel)
                added = target
                if self.extras.residual:
                    added = self.places.output(self.residual, piece, channel)
                in_next_tile = b.add(piece, b.sub(last, first))
                fetched = self._fetched(in_next_tile, b.sub(panel, panels[0]))
                value, sizes = self.places.sizes(piece)
                choices = [(end, self._product(pixels, columns)) for end, pixels in sizes]
                ahead = self._ahead(weights, b.sub(piece, first))
                arguments = [rows_of(piece), weights, bias, target, fetched, ahead, added]
                self._choose(value, choices, arguments)

            code.for_each(first, last, one)

        begin, end = panels
        whole = I64(packing.whole_panels)
        code.for_each(
            begin, code.least(end, whole), lambda panel: times(panel, packing.panel_channels)
        )
        if packing.tail_channels:
            there = b.icmp_signed(">", end, whole)
            code.when(there, lambda: times(whole, packing.tail_channels))

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
        share = self.ahead.share(self.code, self.packing.panel_bytes, self.pieces)
        return self.code.at(start, self.code.builder.mul(number, share), BYTE)

    def _source_functions(self) -> list[tuple[int, ir.Function]]:
        """Returns (end, function): pieces of a row before ``end`` run the function, in order."""
        source, width = self.layer.source, self.extent.width
        if source is None:
            return []
        runs = [source.window.over(row, width) for row in self.plan.rows]
        functions = {
            taps: source.emit(
                self.module, f"source_{n}", self.layer.isa, self.layer.dot, width, taps, self.sink
            )
            for n, taps in enumerate(dict.fromkeys(runs))
        }
        ends: list[tuple[int, ir.Function]] = []
        end = 0
        for taps, group in groupby(runs):
            end += len(list(group))
            ends.append((end, functions[taps]))
        return ends

    def _product(self, pixels: int, columns: int) -> ir.Function:
        key = (pixels, columns)
        if key not in self.products:
            layer, stage = self.layer, self.layer.product
            assert stage is not None
            in_tile = layer.source is not None
            product = Product(
                stage,
                layer.isa,
                layer.dot,
                stride=layer.tile_stride if in_tile else stage.channels,
                depth=layer.depth if in_tile else stage.channels,
                pixels=pixels,
                columns=columns,
                prefetch=self.prefetch,
                ahead=self.ahead,
                residual=self.extras.residual,
                streaming=self.plan.streaming,
            )
            self.products[key] = product.emit(self.module)
        return self.products[key]

    def _choose(
        self,
        value: ir.Value,
        choices: list[tuple[int, ir.Function]],
        arguments: list[ir.Value],
    ) -> None:
        """Emits a call of the first choice whose end is beyond the value."""
        b = self.code.builder
        (end, function), *others = choices
        if not others:
            b.call(function, arguments)
            return
        with b.if_else(b.icmp_signed("<", value, I64(end))) as (yes, no):
            with yes:
                b.call(function, arguments)
            with no:
                self._choose(value, others, arguments)
