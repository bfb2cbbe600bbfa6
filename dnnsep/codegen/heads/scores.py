"""The scores of a block of query rows by some vectors of keys."""

from __future__ import annotations

from llvmlite import ir

from dnnsep.codegen.heads.layout import Layout
from dnnsep.codegen.heads.masked import first_lanes, load
from dnnsep.codegen.heads.softmax import LOG2_E
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, POINTER, Code

_STEPS_AT_ONCE = 4


def emit_scores(module: ir.Module, layout: Layout, rows: int, vectors: int) -> ir.Function:
    """Returns f(queries, keys, scores, most, left, [bias, pitch]...).

    Scores are multiplied by LOG2_E, by which queries are already, but biases are not. Queries and
    keys are as the layout packs them, ``left`` keys are there from the first on, and
    biases begin at the first query and the first key. Writes the scores, those beyond the keys
    minus infinity, and updates the largest score of each row and lane in ``most``.
    """
    biases = [POINTER, I64] * layout.special.biases
    name = f"scores_{rows}x{vectors}"
    code = Code(module, name, [POINTER] * 4 + [I64, *biases]).internal()
    return _Scores(code, layout, rows, vectors).emit()


class _Scores:
    def __init__(self, code: Code, layout: Layout, rows: int, vectors: int) -> None:
        self.code, self.layout, self.rows, self.vectors = code, layout, rows, vectors
        self.vector = ir.VectorType(F32, layout.lanes)

    def emit(self) -> ir.Function:
        code, depth = self.code, self.layout.special.depth
        zero = ir.Constant(self.vector, None)
        sums = [zero] * (self.rows * self.vectors)
        whole = depth // _STEPS_AT_ONCE * _STEPS_AT_ONCE

        def steps(at: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            return self._multiply(at, _STEPS_AT_ONCE, sums)

        sums = code.for_range(I64(0), I64(whole), steps, sums, step=_STEPS_AT_ONCE)
        sums = self._multiply(I64(whole), depth - whole, sums)
        self._finish(sums)
        return code.end()

    def _multiply(self, at: ir.Value, count: int, sums: list[ir.Value]) -> list[ir.Value]:
        """Adds the products of so many channels from one on."""
        code, b, lanes = self.code, self.code.builder, self.layout.lanes
        queries, keys, *_ = code.arguments
        row_apart, channel_apart = self.layout.query_apart
        query = code.at(queries, b.mul(at, I64(channel_apart)), F32)
        key = code.at(keys, b.mul(at, I64(lanes)), F32)
        panel = self.layout.special.depth * lanes
        for step in range(count):
            factors = [
                code.load(code.at(key, v * panel + step * lanes, F32), self.vector)
                for v in range(self.vectors)
            ]
            for row in range(self.rows):
                place = code.at(query, row * row_apart + step * channel_apart, F32)
                value = code.broadcast(code.load(place, F32), lanes)
                for v, factor in enumerate(factors):
                    index = row * self.vectors + v
                    sums[index] = code.fma(value, factor, sums[index])
        return sums

    def _finish(self, sums: list[ir.Value]) -> None:
        """Adds the biases, and writes the scores and the largest ones."""
        code, b, lanes = self.code, self.code.builder, self.layout.lanes
        _, _, scores, most, left, *biases = code.arguments
        element = ELEMENTS[self.layout.special.dtype]
        lowest, log2_e = (code.splat(x, self.vector) for x in (float("-inf"), LOG2_E))
        masks = [first_lanes(code, b.sub(left, I64(v * lanes)), lanes) for v in range(self.vectors)]
        for row in range(self.rows):
            place = code.at(most, row * lanes, F32)
            largest = code.load(place, self.vector)
            starts = [
                code.at(bias, b.mul(pitch, I64(row)), element.type)
                for bias, pitch in zip(biases[::2], biases[1::2], strict=True)
            ]
            for v, mask in enumerate(masks):
                score = sums[row * self.vectors + v]
                for start in starts:
                    added = load(code, element, code.at(start, v * lanes, element.type), mask)
                    score = code.fma(added, log2_e, score)
                score = b.select(mask, score, lowest)
                largest = b.select(b.fcmp_ordered(">", score, largest), score, largest)
                code.store(score, code.at(scores, (v * self.rows + row) * lanes, F32))
            code.store(largest, place)
