"""Both stages of a problem in one pass: what each thread runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from llvmlite import ir

from dnnsep.codegen.depthwise import emit_depthwise, shape_of
from dnnsep.codegen.emit import F32, I16, I32, I64, POINTER, Code
from dnnsep.codegen.matmul import emit_matmul
from dnnsep.codegen.pack import Layout
from dnnsep.codegen.plan import Plan, pieces, row_stride, tile_bytes, tile_is_bf16
from dnnsep.codegen.prefetch import new_rows, prefetch_for
from dnnsep.problem import Problem

# The pointers that the kernel's one argument points to.
TASK_FIELDS = ("x", "y", "packed", "scratch", "thread_number", "thread_count")


def emit_separable(problem: Problem, plan: Plan) -> ir.Module:
    """A module with ``run(task)``, which a team of threads calls at once; any team does all parts.

    ``task`` points to TASK_FIELDS; ``scratch`` has ``part_bytes`` for each part.
    """
    return _Separable(problem, plan).emit()


def part_bytes(problem: Problem, plan: Plan) -> int:
    """Scratch memory of one part."""
    return -(-tile_bytes(problem, plan) // 4096) * 4096


class _Separable:
    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem, self.plan, self.isa = problem, plan, plan.isa
        self.module = ir.Module()
        self.module.triple = ""
        self.layout = Layout(problem, plan)
        self.element = I16 if problem.dtype == "bf16" else F32
        self.tile_element = I16 if tile_is_bf16(problem, plan.isa) else F32
        _, _, self.out_height, self.out_width = problem.output_shape
        self.total_rows = problem.batch * self.out_height
        self.pieces = pieces(problem, plan.rows, plan.rows_per_piece)
        self.prefetch = prefetch_for(
            problem, plan, max(1, self.layout.panels // plan.channel_parts)
        )

    def emit(self) -> ir.Module:
        self.depthwise = self._depthwise_functions()
        self.matmuls: dict[tuple[int, int], ir.Function] = {}
        part = self._part()
        code = Code(self.module, "run", [POINTER])
        task = code.arguments[0]
        b = code.builder
        x, y, packed, scratch, number, count = (
            code.load(code.at(task, i, POINTER), POINTER) for i in range(len(TASK_FIELDS))
        )
        asks = ir.FunctionType(I32, [])
        mine, team = (b.sext(_call_pointer(b, f, asks), I64) for f in (number, count))

        def one(at: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            mine = code.at(
                scratch, b.mul(at, I64(part_bytes(self.problem, self.plan))), ir.IntType(8)
            )
            b.call(part, [at, x, y, packed, mine])
            return []

        code.for_range(mine, I64(self.plan.parts), one, step=team)
        if self.plan.streaming:  # such stores may come after whatever tells others of the result
            code.fence()
        code.end()
        return self.module

    def _depthwise_functions(self) -> list[tuple[int, ir.Function]]:
        """(end, function): pieces of a row before ``end`` run the function, in order."""
        shapes = [shape_of(self.problem, row) for row in self.plan.rows]
        functions: dict[object, ir.Function] = {}
        for shape in shapes:
            if shape not in functions:
                functions[shape] = emit_depthwise(
                    self.module, f"depthwise_{len(functions)}", self.problem, self.isa, shape
                )
        found, end = [], 0
        for shape, group in groupby(shapes):
            end += len(list(group))
            found.append((end, functions[shape]))
        return found

    def _matmul(self, pixels: int, channels: int) -> ir.Function:
        key = (pixels, channels)
        if key not in self.matmuls:
            self.matmuls[key] = emit_matmul(
                self.module,
                f"matmul_{pixels}x{channels}",
                self.problem,
                self.plan,
                pixels,
                channels,
                self.prefetch,
            )
        return self.matmuls[key]

    def _part(self) -> ir.Function:
        """f(part, x, y, packed, tile): a range of pieces, tile by tile, times a range of panels."""
        code = Code(self.module, "part", [I64, POINTER, POINTER, POINTER, POINTER]).internal()
        plan, b = self.plan, code.builder
        part, x, y, packed, tile = code.arguments
        by_pixels = b.sdiv(part, I64(plan.channel_parts))
        by_channels = b.srem(part, I64(plan.channel_parts))

        def share(total: int, number: ir.Value, parts: int) -> tuple[ir.Value, ir.Value]:
            first, second = (
                b.sdiv(b.mul(n, I64(total)), I64(parts)) for n in (number, b.add(number, I64(1)))
            )
            return first, second

        first, last = share(self.pieces, by_pixels, plan.pixel_parts)
        panels = share(self.layout.panels, by_channels, plan.channel_parts)

        def one_tile(at: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            stop = code.least(b.add(at, I64(plan.tile)), last)
            self._depthwise_of(code, x, packed, tile, at, stop)
            self._matmul_of(code, x, y, packed, tile, at, stop, panels)
            return []

        code.for_range(first, last, one_tile, step=plan.tile)
        return code.end()

    def _slot(self, code: Code, tile: ir.Value, number: ir.Value) -> ir.Value:
        stride = self.plan.pixels * row_stride(self.problem, self.isa)
        return code.at(tile, code.builder.mul(number, I64(stride)), self.tile_element)

    def _depthwise_of(
        self,
        code: Code,
        x: ir.Value,
        packed: ir.Value,
        tile: ir.Value,
        first: ir.Value,
        last: ir.Value,
    ) -> None:
        plan, b, count = self.plan, code.builder, len(self.plan.rows)

        def piece(at: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            slot = self._slot(code, tile, b.sub(at, first))
            row, place = self._row_and_place(code, at)
            if count > 1:
                self._depthwise_row(code, x, packed, slot, row, place)
                return []
            stop = code.least(b.add(row, I64(plan.rows_per_piece)), I64(self.total_rows))

            def one(at: ir.Value, slots: list[ir.Value]) -> list[ir.Value]:
                self._depthwise_row(code, x, packed, slots[0], at, place)
                stride = self.out_width * row_stride(self.problem, self.isa)
                return [code.at(slots[0], stride, self.tile_element)]

            code.for_range(row, stop, one, [slot])
            return []

        code.for_range(first, last, piece)

    def _depthwise_row(
        self,
        code: Code,
        x: ir.Value,
        packed: ir.Value,
        slot: ir.Value,
        row: ir.Value,
        place: ir.Value,
    ) -> None:
        """One piece of a row (counted over all images), ``place`` along it."""
        problem, b = self.problem, code.builder
        above = self._above(code, row)
        step = problem.dilation[0]
        hidden = code.most(I64(0), b.sub(I64(0), above))
        first = b.sdiv(b.add(hidden, I64(step - 1)), I64(step))
        below = b.sdiv(b.sub(I64(problem.height - 1), above), I64(step))
        last = code.least(I64(problem.kernel[0]), b.add(below, I64(1)))
        source = self._input(code, x, row, above, place)
        arguments = [source, packed, slot, first, last]
        self._choose(code, place, self.depthwise, lambda f: b.call(f, arguments))

    def _above(self, code: Code, row: ir.Value) -> ir.Value:
        """The input row under the kernel's first row, in its image; maybe above it."""
        b = code.builder
        out_row = b.srem(row, I64(self.out_height))
        return b.sub(b.mul(out_row, I64(self.problem.stride[0])), I64(self.problem.padding[0]))

    def _input(
        self, code: Code, x: ir.Value, row: ir.Value, line: ir.Value, place: ir.Value
    ) -> ir.Value:
        """The address of an input row of ``row``'s image at the piece's first pixel and tap."""
        problem, b = self.problem, code.builder
        image = b.sdiv(row, I64(self.out_height))
        start = b.mul(self._start(code, place), I64(problem.stride[1]))
        column = b.sub(start, I64(problem.padding[2]))
        line = b.add(b.mul(image, I64(problem.height)), line)
        pixel = b.add(b.mul(line, I64(problem.width)), column)
        return code.at(x, b.mul(pixel, I64(problem.in_channels)), self.element)

    def _new_input(self, code: Code, x: ir.Value, piece: ir.Value, number: ir.Value) -> ir.Value:
        """What the number-th multiplication fetches of a piece's new input; that may not exist."""
        if not self.prefetch:
            return x
        problem, b = self.problem, code.builder
        row, place = self._row_and_place(code, piece)
        lowest = (problem.kernel[0] - 1) * problem.dilation[0]
        line = b.add(self._above(code, row), I64(lowest - new_rows(problem) + 1))
        start = self._input(code, x, row, line, place)
        return code.at(start, b.mul(number, I64(self.prefetch.share)), ir.IntType(8))

    def _choose(
        self,
        code: Code,
        value: ir.Value,
        choices: list[tuple[int, ir.Function]],
        call: Callable[[ir.Function], object],
    ) -> None:
        """Call the first choice whose end is beyond the value."""
        (end, function), *others = choices
        if not others:
            call(function)
            return
        with code.builder.if_else(code.builder.icmp_signed("<", value, I64(end))) as (yes, no):
            with yes:
                call(function)
            with no:
                self._choose(code, value, others, call)

    def _matmul_of(
        self,
        code: Code,
        x: ir.Value,
        y: ir.Value,
        packed: ir.Value,
        tile: ir.Value,
        first: ir.Value,
        last: ir.Value,
        panels: tuple[ir.Value, ir.Value],
    ) -> None:
        """The tile times each panel; a panel's weights are used by all pieces before the next."""
        b, layout = code.builder, self.layout

        def times(panel: ir.Value, channels: int) -> None:
            weights = code.at(
                code.at(packed, layout.pointwise, ir.IntType(8)),
                b.mul(panel, I64(layout.panel_bytes)),
                ir.IntType(8),
            )
            columns = b.mul(panel, I64(layout.panel_channels))
            bias = code.at(code.at(packed, layout.bias, ir.IntType(8)), columns, F32)

            def piece(at: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                slot = self._slot(code, tile, b.sub(at, first))
                pixel = b.mul(self._first_pixel(code, at), I64(self.problem.out_channels))
                target = code.at(y, b.add(pixel, columns), self.element)
                following = b.add(
                    at, b.sub(last, first)
                )  # the piece in this place of the next tile
                number = b.sub(panel, panels[0])
                arguments = [
                    slot,
                    weights,
                    bias,
                    target,
                    self._new_input(code, x, following, number),
                ]
                choices = [(end, self._matmul(n, channels)) for end, n in self._heights()]
                which = self._height_index(code, at)
                self._choose(code, which, choices, lambda f: b.call(f, arguments))
                return []

            code.for_range(first, last, piece)

        def whole(panel: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            times(panel, layout.panel_channels)
            return []

        begin, end = panels
        code.for_range(begin, code.least(end, I64(layout.whole_panels)), whole)
        if layout.tail_channels:
            code.when(
                b.icmp_signed(">", end, I64(layout.whole_panels)),
                lambda: times(I64(layout.whole_panels), layout.tail_channels),
            )

    def _start(self, code: Code, place: ir.Value) -> ir.Value:
        """Where a row's piece starts, as ``plan`` cuts: the wider ones come first."""
        b = code.builder
        base, wider = divmod(self.out_width, len(self.plan.rows))
        return b.add(b.mul(place, I64(base)), code.least(place, I64(wider)))

    def _row_and_place(self, code: Code, piece: ir.Value) -> tuple[ir.Value, ir.Value]:
        """A piece's (first) row, counted over all images, and its place along it."""
        b, count = code.builder, len(self.plan.rows)
        if count == 1:
            return b.mul(piece, I64(self.plan.rows_per_piece)), I64(0)
        return b.sdiv(piece, I64(count)), b.srem(piece, I64(count))

    def _first_pixel(self, code: Code, piece: ir.Value) -> ir.Value:
        b = code.builder
        row, place = self._row_and_place(code, piece)
        return b.add(b.mul(row, I64(self.out_width)), self._start(code, place))

    def _heights(self) -> list[tuple[int, int]]:
        """(end, pixels): pieces whose index is before ``end`` have so many pixels, in order."""
        if len(self.plan.rows) > 1:
            found, end = [], 0
            for width, group in groupby(row.width for row in self.plan.rows):
                end += len(list(group))
                found.append((end, width))
            return found
        per_piece = self.plan.rows_per_piece
        rest = self.total_rows % per_piece
        whole = [(self.total_rows // per_piece, per_piece * self.out_width)]
        return whole + ([(self.pieces, rest * self.out_width)] if rest else [])

    def _height_index(self, code: Code, piece: ir.Value) -> ir.Value:
        count = len(self.plan.rows)
        return code.builder.srem(piece, I64(count)) if count > 1 else piece


class _Callee:
    """An untyped pointer as something to call: llvmlite looks for the signature in the type."""

    def __init__(self, pointer: ir.Value, signature: ir.FunctionType) -> None:
        self.type, self.function_type = pointer.type, signature
        self.get_reference = pointer.get_reference


def _call_pointer(builder: ir.IRBuilder, pointer: ir.Value, signature: ir.FunctionType) -> ir.Value:
    return builder.call(_Callee(pointer, signature), [])
