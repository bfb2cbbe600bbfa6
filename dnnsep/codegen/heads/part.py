"""The code of a whole attention kernel: parts, heads, blocks of query rows.

Each row's result is computed in the same order whatever block and part it is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from llvmlite import ir

from dnnsep.codegen.heads.block import Block
from dnnsep.codegen.heads.copy import emit_panels, emit_transpose, emit_widen
from dnnsep.codegen.heads.layout import Layout
from dnnsep.codegen.heads.softmax import emit_softmax
from dnnsep.codegen.heads.task import Fields
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import BYTE, F32, I64, Code
from dnnsep.codegen.task import KERNEL_TYPES, share
from dnnsep.dtypes import DTYPES

_LINE = 64


def emit_heads(layout: Layout) -> ir.Module:
    """Returns a module with ``run(task, part, scratch)``, which does one part; ``task`` points to a
    HeadsTask."""
    module = ir.Module()
    module.triple = ""
    _Part(module, layout).emit()
    return module


class _Part:
    """Writes ``run(task, number, scratch)``: an equal share of the blocks of all heads."""

    def __init__(self, module: ir.Module, layout: Layout) -> None:
        self.layout, self.special, self.lanes = layout, layout.special, layout.lanes
        self.element = ELEMENTS[self.special.dtype]
        self.pack_keys, self.pack_values = self._packers(module)
        softmax = emit_softmax(module, self.lanes)
        self.blocks = [Block(layout, rows, softmax).emit(module) for rows in layout.rows]
        self.code = Code(module, "run", KERNEL_TYPES)
        self.task, self.number, self.scratch = self.code.arguments
        self.fields = Fields(self.code, self.task)
        self.queries, self.keys = self.fields.count("queries"), self.fields.count("keys")

    def _packers(self, module: ir.Module) -> tuple[ir.Function, ir.Function]:
        """Returns the functions that pack keys and values."""
        special, given = self.special, (self.element, self.lanes)
        transpose = None
        if special.v_transposed or not special.k_transposed:
            transpose = emit_transpose(module, *given)
        keys = transpose
        if special.k_transposed:
            keys = emit_panels(module, *given, special.depth)
        values = transpose
        if not special.v_transposed:
            values = emit_widen(module, *given, special.value_depth)
        return keys, values

    def emit(self) -> ir.Function:
        code, b, fields = self.code, self.code.builder, self.fields
        heads = fields.count("heads")
        most = self.layout.most_rows
        blocks = b.sdiv(b.add(self.queries, I64(most - 1)), I64(most))
        # So many blocks of a head are of the larger size.
        larger = b.sub(self.queries, b.mul(blocks, I64(self.layout.rows[0] - 1)))
        total = b.mul(b.mul(fields.count("batch"), heads), blocks)
        first, end = share(code, total, self.number, fields.count("parts"))
        places = self._scratch()

        def one_head(at: ir.Value) -> None:
            begin = b.mul(at, blocks)
            here = code.most(b.sub(first, begin), I64(0)), code.least(b.sub(end, begin), blocks)
            here_and_next = [
                (b.sdiv(number, heads), b.srem(number, heads)) for number in (at, b.add(at, I64(1)))
            ]
            self._head(here_and_next, here, larger, places)

        def some() -> None:
            last = b.sdiv(b.sub(end, I64(1)), blocks)
            code.for_each(b.sdiv(first, blocks), b.add(last, I64(1)), one_head)

        code.when(b.icmp_signed("<", first, end), some)
        return code.end()

    def _scratch(self) -> list[ir.Value]:
        """Returns the addresses of the part's memory: what does not depend on the keys, scores,
        keys, values."""
        code, b, layout = self.code, self.code.builder, self.layout
        vectors = b.sdiv(b.add(self.keys, I64(self.lanes - 1)), I64(self.lanes))
        scores = code.at(self.scratch, sum(layout.fixed_floats), F32)
        score_floats, key_floats, _ = layout.floats_of_vector
        keys = code.at(scores, b.mul(vectors, I64(score_floats)), F32)
        values = code.at(keys, b.mul(vectors, I64(key_floats)), F32)
        return [self.scratch, scores, keys, code.at(values, layout.spare_floats, F32)]

    def _head(
        self,
        heads: Sequence[tuple[ir.Value, ir.Value]],
        here: tuple[ir.Value, ir.Value],
        larger: ir.Value,
        places: list[ir.Value],
    ) -> None:
        """Emits the blocks from one up to another of a head, the first of two, each a batch and its
        head; meanwhile what is read of the other is fetched, since rows are short and far apart."""
        code, b, fields, special = self.code, self.code.builder, self.fields, self.special
        kind, (first, end) = self.element.type, here
        names = [f"bias{number}" for number in range(special.biases)]
        start, following = (
            {name: fields.row(name, *head, kind) for name in ("q", "k", "v", "y", *names)}
            for head in heads
        )
        self._pack(start["k"], start["v"], *places[2:])

        def at_row(name: str, row: ir.Value, transposed: bool = False) -> ir.Value:
            offset = row if transposed else b.mul(row, fields.count(f"{name}_row"))
            return code.at(start[name], offset, kind)

        def one(block: ir.Value, function: ir.Function, count: int) -> None:
            before = b.mul(block, I64(self.layout.rows[0] - 1))
            row = b.add(before, code.least(block, larger))
            self._fetch(following, row, count)
            q = at_row("q", row, special.q_transposed)
            y = at_row("y", row, special.y_transposed)
            b.call(function, [self.task, q, y, *places, *(at_row(name, row) for name in names)])

        bounds = [first, end]
        if len(self.blocks) > 1:
            bounds.insert(1, code.least(code.most(first, larger), end))
        for function, count, (start_block, stop) in zip(
            self.blocks, self.layout.rows, pairwise(bounds), strict=True
        ):
            code.for_each(start_block, stop, partial(one, function=function, count=count))

    def _fetch(self, start: dict[str, ir.Value], row: ir.Value, count: int) -> None:
        """Fetches rows of tokens of a head from one on, which need not exist."""
        code, b, special = self.code, self.code.builder, self.special
        size = DTYPES[special.dtype].bytes
        for name, transposed, depth in (
            ("q", special.q_transposed, special.depth),
            ("k", special.k_transposed, special.depth),
            ("v", special.v_transposed, special.value_depth),
        ):
            for i in range(0 if transposed else count):
                offset = b.mul(b.add(row, I64(i)), self.fields.count(f"{name}_row"))
                place = code.at(start[name], offset, self.element.type)
                for line in range(0, depth * size, _LINE):
                    code.prefetch(code.at(place, line, BYTE), level=2)

    def _pack(self, k: ir.Value, v: ir.Value, keys: ir.Value, values: ir.Value) -> None:
        b, special = self.code.builder, self.special
        k_row, v_row = self.fields.count("k_row"), self.fields.count("v_row")
        lanes, depth = I64(self.lanes), I64(special.depth)
        if special.k_transposed:
            b.call(self.pack_keys, [k, self.keys, k_row, keys])
        else:
            block = I64(special.depth * self.lanes)
            b.call(self.pack_keys, [k, self.keys, k_row, depth, keys, lanes, block])
        if special.v_transposed:
            width, row = I64(special.value_depth), I64(self.layout.value_row)
            b.call(self.pack_values, [v, width, v_row, self.keys, values, row, lanes])
        else:
            b.call(self.pack_values, [v, self.keys, v_row, values])
