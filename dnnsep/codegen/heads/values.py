"""The product of a block's weights by the values, for some vectors of channels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from llvmlite import ir

from dnnsep.codegen.heads.layout import GROUP, Layout
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, POINTER, Code


@dataclass(frozen=True)
class Columns:
    """Neighbouring channels of values that are computed at once, from the first on."""

    first: int
    channels: int

    @classmethod
    def all(cls, layout: Layout) -> list[Columns]:
        """Returns all of them, as equal as whole vectors can be."""
        vectors = layout.value_row // layout.lanes
        groups = -(-vectors // layout.vectors)
        bounds = [group * vectors // groups * layout.lanes for group in range(groups + 1)]
        bounds[-1] = layout.special.value_depth
        return [cls(first, end - first) for first, end in pairwise(bounds)]


def emit_values(module: ir.Module, layout: Layout, rows: int, columns: Columns) -> ir.Function:
    """Returns f(weights, values, keys, shares, y, pitch): writes ``rows`` rows of y, ``pitch``
    elements apart, in f32 where it is transposed after that.

    Weights are (vectors, rows, lanes), values as the layout packs them from these columns on, and
    the first lane of a vector for each row in ``shares`` is what its sums are multiplied by.
    """
    name = f"values_{rows}_{columns.first}"
    arguments = [POINTER, POINTER, I64, POINTER, POINTER, I64]
    code = Code(module, name, arguments).internal()
    return _Values(code, layout, rows, columns).emit()


class _Values:
    def __init__(self, code: Code, layout: Layout, rows: int, columns: Columns) -> None:
        self.code, self.layout, self.rows, self.columns = code, layout, rows, columns
        self.lanes = layout.lanes
        self.vectors = -(-columns.channels // self.lanes)
        self.vector = ir.VectorType(F32, self.lanes)

    def emit(self) -> ir.Function:
        code, b = self.code, self.code.builder
        _, _, keys, *_ = code.arguments
        whole = b.sub(keys, b.srem(keys, I64(GROUP)))
        sums = [ir.Constant(self.vector, None)] * (self.rows * self.vectors)
        sums = code.for_range(
            I64(0), whole, lambda at, sums: self._multiply(at, GROUP, sums), sums, step=GROUP
        )
        sums = code.for_range(whole, keys, lambda at, sums: self._multiply(at, 1, sums), sums)
        self._finish(sums)
        return code.end()

    def _multiply(self, at: ir.Value, count: int, sums: list[ir.Value]) -> list[ir.Value]:
        """Adds the products of so many keys from one on; they are of one vector of weights."""
        code, b, lanes = self.code, self.code.builder, self.lanes
        weights, values, *_ = code.arguments
        vector, lane = b.sdiv(at, I64(lanes)), b.srem(at, I64(lanes))
        first = b.add(b.mul(vector, I64(self.rows * lanes)), lane)
        weight = code.at(weights, first, F32)
        value = code.at(values, b.mul(at, I64(self.layout.value_row)), F32)
        for step in range(count):
            start = step * self.layout.value_row
            factors = [
                code.load(code.at(value, start + v * lanes, F32), self.vector)
                for v in range(self.vectors)
            ]
            for row in range(self.rows):
                place = code.at(weight, row * lanes + step, F32)
                each = code.broadcast(code.load(place, F32), lanes)
                for v, factor in enumerate(factors):
                    index = row * self.vectors + v
                    sums[index] = code.fma(each, factor, sums[index])
        return sums

    def _finish(self, sums: list[ir.Value]) -> None:
        code, b, special = self.code, self.code.builder, self.layout.special
        *_, shares, y, pitch = code.arguments
        element = ELEMENTS["f32" if special.y_transposed else special.dtype]
        for row in range(self.rows):
            share = code.load(code.at(shares, row, self.vector), F32)
            share = code.broadcast(share, self.lanes)
            start = code.at(y, b.mul(pitch, I64(row)), element.type)
            for v in range(self.vectors):
                first = v * self.lanes
                there = min(self.lanes, self.columns.channels - first)
                result = b.fmul(sums[row * self.vectors + v], share)
                place = code.at(start, first, element.type)
                element.store(code, special.isa, result, place, there)
