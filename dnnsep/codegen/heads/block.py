"""The code of a block of query rows of one head."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.heads.copy import transposed
from dnnsep.codegen.heads.layout import GROUP, Layout
from dnnsep.codegen.heads.scores import emit_scores
from dnnsep.codegen.heads.softmax import LOG2_E
from dnnsep.codegen.heads.task import Fields
from dnnsep.codegen.heads.values import Columns, emit_values
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, POINTER, Code


@dataclass(frozen=True)
class Block:
    """So many query rows; ``softmax`` is the function of emit_softmax."""

    layout: Layout
    rows: int
    softmax: ir.Function

    def emit(self, module: ir.Module) -> ir.Function:
        """Returns f(task, q, y, room, scores, keys, values, [bias]...), whose q, y and biases begin
        at the block's first row; ``room`` has what does not depend on the keys, ``keys`` and
        ``values`` are packed."""
        arguments = [POINTER] * (7 + self.layout.special.biases)
        code = Code(module, f"block_{self.rows}", arguments).internal()
        return _Emitter(code, self).emit()


class _Emitter:
    def __init__(self, code: Code, of: Block) -> None:
        self.code, self.of, self.layout, self.rows = code, of, of.layout, of.rows
        self.special, self.lanes = of.layout.special, of.layout.lanes
        self.element, self.vector = ELEMENTS[self.special.dtype], ir.VectorType(F32, self.lanes)
        task, self.q, self.y, *rest = code.arguments
        room, self.scores, self.keys, self.values, *self.biases = rest
        self.fields = Fields(code, task)
        queries, largest, _ = self.layout.fixed_floats
        self.queries, self.most = room, code.at(room, queries, F32)
        self.results = code.at(room, queries + largest, F32)

    def emit(self) -> ir.Function:
        code, b = self.code, self.code.builder
        if self.special.q_transposed:
            self._pack_columns()
        else:
            self._pack_rows()
        lowest = code.splat(float("-inf"), self.vector)
        for row in range(self.rows):
            code.store(lowest, code.at(self.most, row, self.vector))
        count = self.fields.count("keys")
        vectors = b.sdiv(b.add(count, I64(self.lanes - 1)), I64(self.lanes))
        self._all_scores(count, vectors)
        b.call(self.of.softmax, [self.scores, self.most, I64(self.rows), vectors])
        self._all_values(count)
        if self.special.y_transposed:
            self._transpose_results()
        return code.end()

    def _pack_rows(self) -> None:
        code, b = self.code, self.code.builder
        pitch = self.fields.count("q_row")
        scale = self._scale()
        row_apart, _ = self.layout.query_apart
        for row in range(self.rows):
            start = code.at(self.q, b.mul(pitch, I64(row)), self.element.type)
            for first in range(0, self.special.depth, self.lanes):
                there = min(self.lanes, self.special.depth - first)
                place = code.at(start, first, self.element.type)
                value = self.element.load(code, place, self.lanes, there)
                target = code.at(self.queries, row * row_apart + first, F32)
                code.store(b.fmul(value, scale), target)

    def _scale(self) -> ir.Value:
        """Returns what queries are multiplied by, in all lanes."""
        scale = self.fields.number("scale")
        in_powers_of_2 = self.code.builder.fmul(scale, ir.Constant(F32, LOG2_E))
        return self.code.broadcast(in_powers_of_2, self.lanes)

    def _pack_columns(self) -> None:
        code, b = self.code, self.code.builder
        pitch = self.fields.count("q_row")
        scale = self._scale()

        def channel(at: ir.Value) -> None:
            place = code.at(self.q, b.mul(pitch, at), self.element.type)
            value = self.element.load(code, place, self.lanes, self.rows)
            code.store(b.fmul(value, scale), code.at(self.queries, at, self.vector))

        code.for_each(0, self.special.depth, channel)

    def _all_scores(self, count: ir.Value, vectors: ir.Value) -> None:
        code, b, module = self.code, self.code.builder, self.code.module
        pitches = [self.fields.count(f"bias{number}_row") for number in range(len(self.biases))]
        first = I64(0)
        for width in range(self.layout.vectors, 0, -1):
            function = emit_scores(module, self.layout, self.rows, width)
            here = b.sub(vectors, first)
            end = b.add(first, b.sub(here, b.srem(here, I64(width))))

            def one(at: ir.Value, function: ir.Function = function) -> None:
                key = b.mul(at, I64(self.lanes))
                arguments = [
                    self.queries,
                    code.at(self.keys, b.mul(key, I64(self.special.depth)), F32),
                    code.at(self.scores, b.mul(key, I64(self.rows)), F32),
                    self.most,
                    b.sub(count, key),
                ]
                for bias, pitch in zip(self.biases, pitches, strict=True):
                    arguments += [code.at(bias, key, self.element.type), pitch]
                b.call(function, arguments)

            code.for_each(first, end, one, step=width)
            first = end

    def _all_values(self, count: ir.Value) -> None:
        code, b, special = self.code, self.code.builder, self.special
        y, pitch, kind = self.y, self.fields.count("y_row"), self.element.type
        if special.y_transposed:
            y, pitch, kind = self.results, I64(self.layout.value_row), F32
        for columns in Columns.all(self.layout):
            function = emit_values(code.module, self.layout, self.rows, columns)
            values, target = (
                code.at(self.values, columns.first, F32),
                code.at(y, columns.first, kind),
            )
            b.call(function, [self.scores, values, count, self.most, target, pitch])

    def _transpose_results(self) -> None:
        """Writes the block's results as channels of neighbouring tokens."""
        code, b, depth = self.code, self.code.builder, self.special.value_depth
        pitch = self.fields.count("y_row")
        group = ir.VectorType(F32, GROUP)
        blank = ir.Constant(group, None)

        def channels(at: ir.Value, count: int) -> None:
            starts = [
                code.at(self.results, row * self.layout.value_row, F32) for row in range(self.rows)
            ]
            chunks = [code.load(code.at(start, at, F32), group) for start in starts]
            chunks += [blank] * (self.lanes - self.rows)
            vectors = transposed(code, ELEMENTS["f32"], chunks)
            for number, vector in enumerate(vectors[:count]):
                offset = b.mul(b.add(at, I64(number)), pitch)
                place = code.at(self.y, offset, self.element.type)
                self.element.store(code, self.special.isa, vector, place, self.rows)

        whole = depth // GROUP * GROUP
        code.for_each(0, whole, lambda at: channels(at, GROUP), step=GROUP)
        if whole < depth:
            channels(I64(whole), depth - whole)
