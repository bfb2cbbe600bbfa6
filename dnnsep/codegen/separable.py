"""Both stages of a problem in one pass: what each thread runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from llvmlite import ir

from dnnsep.codegen.depthwise import emit_depthwise, shape_of
from dnnsep.codegen.lang.emit import BYTE, F32, I16, I32, I64, POINTER, Code
from dnnsep.codegen.matmul import Matmul
from dnnsep.codegen.mean import emit_mean
from dnnsep.codegen.pack import Layout
from dnnsep.codegen.patches import emit_patches
from dnnsep.codegen.places import Places
from dnnsep.codegen.plan import Plan, row_stride, tile_bytes, tile_is_bf16
from dnnsep.codegen.prefetch import ahead_for, prefetch_for
from dnnsep.problem import Problem
from dnnsep.single import Dense, Depthwise, Mean

# The pointers that the kernel's one argument points to.
TASK_FIELDS = ("x", "y", "packed", "scratch", "thread_number", "thread_count", "residual", "scale")


@dataclass(frozen=True)
class Extras:
    """What a kernel takes beside x: a ``residual``, like y, is added to the sums before the last
    activation; a pointwise convolution's input is multiplied by a ``scale`` (N, C)."""

    residual: bool = False
    scale: bool = False

    def check(self, problem: Problem) -> None:
        """Raises ValueError where a kernel of the problem cannot take these."""
        if self.residual and not takes_residual(problem):
            raise ValueError("residual: a depthwise convolution takes none")
        if self.scale and not can_be_scaled(problem):
            raise ValueError("scale: only a pointwise convolution takes one")


PLAIN = Extras()


def takes_residual(problem: Problem) -> bool:
    return not isinstance(problem, Depthwise)


def can_be_scaled(problem: Problem) -> bool:
    return isinstance(problem, Dense) and (problem.kernel, problem.stride) == ((1, 1), (1, 1))


# Between the tiles of two threads: what the hardware fetches ahead of one must not be the other's,
# which would take its lines away while it writes them. 4 KiB was not enough on a Zen 5.
_GAP_BYTES = 64 * 1024


def part_bytes(problem: Problem, plan: Plan) -> int:
    """Scratch memory of one part."""
    return -(-tile_bytes(problem, plan) // 4096) * 4096 + _GAP_BYTES


def emit_separable(problem: Problem, plan: Plan, extras: Extras = PLAIN) -> ir.Module:
    """A module with ``run(task)``, which a team of threads calls at once; any team does all parts.

    ``task`` points to TASK_FIELDS; ``scratch`` has ``part_bytes`` for each part.
    """
    extras.check(problem)
    module = ir.Module()
    module.triple = ""
    if isinstance(problem, Mean):
        part = emit_mean(module, problem, plan)
    else:
        part = _Part(module, problem, plan, extras).emit()
    code = Code(module, "run", [POINTER])
    (task,), b = code.arguments, code.builder
    x, y, packed, scratch, number, count, residual, scale = (
        code.load(code.at(task, i, POINTER), POINTER) for i in range(len(TASK_FIELDS))
    )
    mine, team = (b.sext(code.call_address(f, [], I32), I64) for f in (number, count))

    def one(at: ir.Value) -> None:
        tile = code.at(scratch, b.mul(at, I64(part_bytes(problem, plan))), BYTE)
        b.call(part, [at, x, y, packed, tile, residual, scale])

    code.for_each(mine, I64(plan.parts), one, step=team)
    if plan.streaming:  # such stores may come after whatever tells others of the result
        code.fence()
    code.end()
    return module


class _Part:
    """f(part, x, y, packed, tile, residual, scale): a range of pieces, tile by tile, times a range
    of panels."""

    def __init__(self, module: ir.Module, problem: Problem, plan: Plan, extras: Extras) -> None:
        self.module, self.problem, self.plan, self.extras = module, problem, plan, extras
        self.layout = Layout(problem, plan)
        self.tile_element = I16 if tile_is_bf16(problem, plan.isa) else F32
        if isinstance(problem, Depthwise):  # the output takes the tile's place
            self.tile_element = I16 if problem.dtype == "bf16" else F32
        self.stride = row_stride(problem, plan.isa)
        panels = max(1, self.layout.panels // plan.channel_parts)
        self.prefetch = prefetch_for(problem, plan, panels)
        self.ahead = ahead_for(plan, self.layout.panel_bytes)
        self.first_stage = self._first_stage_functions()
        self.matmuls: dict[tuple[int, int], ir.Function] = {}
        self.code = Code(module, "part", [I64, *[POINTER] * 6]).internal()
        self.part, *pointers = self.code.arguments
        self.x, self.y, self.packed, self.tile, self.residual, self.scale = pointers
        self.places = Places(self.code, problem, plan)

    def emit(self) -> ir.Function:
        code, plan, b = self.code, self.plan, self.code.builder
        by_pixels = b.sdiv(self.part, I64(plan.channel_parts))
        by_channels = b.srem(self.part, I64(plan.channel_parts))
        first, last = self._share(plan.pieces, by_pixels, plan.pixel_parts)
        panels = self._share(self.layout.panels, by_channels, plan.channel_parts)

        def one_tile(at: ir.Value) -> None:
            stop = code.least(b.add(at, I64(plan.tile)), last)
            if isinstance(self.problem, Depthwise):
                self._first_stage(at, stop, self.places.output(self.y, at, I64(0)))
            else:
                self._multiply(at, stop, panels, self._first_stage(at, stop, self.tile))

        code.for_each(first, last, one_tile, step=plan.tile)
        return code.end()

    def _share(self, total: int, number: ir.Value, parts: int) -> tuple[ir.Value, ir.Value]:
        """The first and the end of one of so many equal parts."""
        b = self.code.builder
        start, stop = (
            b.sdiv(b.mul(n, I64(total)), I64(parts)) for n in (number, b.add(number, I64(1)))
        )
        return start, stop

    def _first_stage(
        self, first: ir.Value, last: ir.Value, tile: ir.Value
    ) -> Callable[[ir.Value], ir.Value]:
        """Fill the tile for the pieces [first, last); gives where in it a piece is."""
        code, b = self.code, self.code.builder

        def slot(number: ir.Value, pixels: int) -> ir.Value:
            elements = b.mul(number, I64(pixels * self.stride))
            return code.at(tile, elements, self.tile_element)

        def one_row(row: ir.Value, place: ir.Value, slot: ir.Value) -> None:
            above = self.places.above(row)
            source = self.places.input(self.x, row, above, place)
            weights = self.packed
            if self.extras.scale:
                weights = self.places.of_image(self.scale, row)
            arguments = [source, weights, slot, *self.places.kernel_rows(above)]
            self._choose(place, self.first_stage, arguments)

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
        slot_of: Callable[[ir.Value], ir.Value],
    ) -> None:
        """The tile times each panel; a panel's weights are used by all pieces before the next."""
        code, b, layout = self.code, self.code.builder, self.layout

        def times(panel: ir.Value, channels: int) -> None:
            matrix = code.at(self.packed, layout.pointwise, BYTE)
            weights = code.at(matrix, b.mul(panel, I64(layout.panel_bytes)), BYTE)
            channel = b.mul(panel, I64(layout.panel_channels))
            bias = code.at(code.at(self.packed, layout.bias, BYTE), channel, F32)

            def one(piece: ir.Value) -> None:
                target = self.places.output(self.y, piece, channel)
                added = target
                if self.extras.residual:
                    added = self.places.output(self.residual, piece, channel)
                in_next_tile = b.add(piece, b.sub(last, first))
                fetched = self._fetched(in_next_tile, b.sub(panel, panels[0]))
                value, sizes = self.places.sizes(piece)
                choices = [(end, self._matmul(pixels, channels)) for end, pixels in sizes]
                ahead = self._ahead(weights, b.sub(piece, first))
                arguments = [slot_of(piece), weights, bias, target, fetched, ahead, added]
                self._choose(value, choices, arguments)

            code.for_each(first, last, one)

        begin, end = panels
        whole = I64(layout.whole_panels)
        code.for_each(
            begin, code.least(end, whole), lambda panel: times(panel, layout.panel_channels)
        )
        if layout.tail_channels:
            there = b.icmp_signed(">", end, whole)
            code.when(there, lambda: times(whole, layout.tail_channels))

    def _fetched(self, piece: ir.Value, number: ir.Value) -> ir.Value:
        """What the number-th multiplication of a tile's piece fetches for another tile's."""
        if not self.prefetch:
            return self.x
        start = self.places.new_input(self.x, piece, self.prefetch.new_rows)
        return self.code.at(start, self.code.builder.mul(number, I64(self.prefetch.share)), BYTE)

    def _ahead(self, weights: ir.Value, number: ir.Value) -> ir.Value:
        """What the number-th piece of a tile fetches of the panel after the one at ``weights``."""
        if not self.ahead:
            return weights
        start = self.code.at(weights, self.layout.panel_bytes, BYTE)
        return self.code.at(start, self.code.builder.mul(number, I64(self.ahead.share)), BYTE)

    def _first_stage_functions(self) -> list[tuple[int, ir.Function]]:
        """(end, function): pieces of a row before ``end`` run the function, in order."""
        shapes = [shape_of(self.problem, row) for row in self.plan.rows]
        emit = emit_depthwise
        if isinstance(self.problem, Dense):
            emit = partial(emit_patches, scaled=self.extras.scale)
        functions = {
            shape: emit(self.module, f"depthwise_{number}", self.problem, self.plan.isa, shape)
            for number, shape in enumerate(dict.fromkeys(shapes))
        }
        found, end = [], 0
        for shape, group in groupby(shapes):
            end += len(list(group))
            found.append((end, functions[shape]))
        return found

    def _matmul(self, pixels: int, channels: int) -> ir.Function:
        key = (pixels, channels)
        if key not in self.matmuls:
            matmul = Matmul(
                self.problem,
                self.plan,
                pixels,
                channels,
                self.prefetch,
                self.ahead,
                self.extras.residual,
            )
            self.matmuls[key] = matmul.emit(self.module)
        return self.matmuls[key]

    def _choose(
        self,
        value: ir.Value,
        choices: list[tuple[int, ir.Function]],
        arguments: list[ir.Value],
    ) -> None:
        """Call the first choice whose end is beyond the value."""
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
