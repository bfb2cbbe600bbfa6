"""The code of an attention kernel: which heads and rows of queries a part has."""

from __future__ import annotations

from llvmlite import ir

from dnnsep.codegen.attention.packing import (
    emit_key_packing,
    emit_query_packing,
    emit_value_packing,
)
from dnnsep.codegen.attention.scores import Softmax, emit_panel, emit_values
from dnnsep.codegen.attention.special import OPERANDS, AttentionSpecial, AttentionTask
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import BYTE, F32, I64
from dnnsep.codegen.task import load_field
from dnnsep.codegen.windows.task import PartCode, new_module


def emit_attention(special: AttentionSpecial) -> ir.Module:
    """Returns a module with ``run(task)``; ``task`` points to an AttentionTask."""
    return _Emitter(special).emit()


class _Emitter:
    def __init__(self, special: AttentionSpecial) -> None:
        self.special = special
        self.element = ELEMENTS[special.dtype]
        module = new_module()
        self.pack_keys = emit_key_packing(module, special)
        self.pack_values = emit_value_packing(module, special)
        self.panels = {
            vectors: emit_panel(module, special, vectors)
            for vectors in range(special.most_vectors, 0, -1)
        }
        self.part = PartCode(module, AttentionTask)
        self.code = code = self.part.code
        fields = self.part.fields
        names = OPERANDS if special.masked else OPERANDS[:-1]
        self.start = {name: fields.address(name) for name in names}
        self.stride = {
            (name, axis): fields.count(f"{name}_{axis}")
            for name in names
            for axis in ("batch", "token", "head")
        }
        self.heads, self.queries, self.keys = fields.counts("heads", "query_count", "key_count")
        self.blocks, self.groups = fields.counts("blocks", "groups")
        self.counts = {vectors: fields.count(f"panels{vectors}") for vectors in self.panels}
        self.score_stride = fields.count("score_stride")
        self.scale = load_field(code, AttentionTask, code.arguments[0], "scale", F32)
        self.packed_keys = self.part.scratch
        self.packed_values, self.packed_queries, self.scores = (
            code.at(self.part.scratch, fields.count(name), BYTE)
            for name in ("values", "queries", "scores")
        )

    def emit(self) -> ir.Module:
        self.code.for_each(self.part.first, self.part.last, self._unit)
        return self.part.end()

    def _unit(self, unit: ir.Value) -> None:
        """Emits a block of rows of a head; the part's first block of a head packs that first."""
        code, b = self.code, self.code.builder
        head, block = b.sdiv(unit, self.blocks), b.srem(unit, self.blocks)
        image, head = b.sdiv(head, self.heads), b.srem(head, self.heads)
        place = {name: self._head(name, image, head) for name in self.start}
        new = b.or_(b.icmp_signed("==", unit, self.part.first), b.icmp_signed("==", block, I64(0)))

        def pack() -> None:
            for name, function, target in (
                ("k", self.pack_keys, self.packed_keys),
                ("v", self.pack_values, self.packed_values),
            ):
                apart = self.stride[name, "token"]
                b.call(function, [place[name], apart, target, self.keys, self.scale])

        code.when(new, pack)
        rows = I64(self.special.rows)
        first = b.mul(b.mul(block, self.groups), rows)
        left = b.sub(self.queries, first)
        filled = b.sdiv(b.add(left, I64(self.special.rows - 1)), rows)
        groups = code.least(self.groups, filled)
        emit_query_packing(
            code,
            self.special,
            lambda number: self._row("q", place["q"], b.add(first, number)),
            self.packed_queries,
            b.mul(groups, rows),
        )
        self._products(groups)
        code.for_each(I64(0), groups, lambda group: self._group(place, first, group))

    def _head(self, name: str, image: ir.Value, head: ir.Value) -> ir.Value:
        """Returns where a head of an image begins in an operand."""
        b = self.code.builder
        offset = b.add(
            b.mul(image, self.stride[name, "batch"]), b.mul(head, self.stride[name, "head"])
        )
        return self.code.at(self.start[name], offset, self.element.type)

    def _row(self, name: str, start: ir.Value, query: ir.Value) -> ir.Value:
        """Returns where a query's row is in an operand; of a group's rows beyond the last query,
        that of the last one."""
        b = self.code.builder
        last = self.code.least(query, b.sub(self.queries, I64(1)))
        return self.code.at(start, b.mul(last, self.stride[name, "token"]), self.element.type)

    def _products(self, groups: ir.Value) -> None:
        """Emits the scores of groups of rows, panel by panel: a panel is used by all of them before
        the next."""
        code, b, lanes = self.code, self.code.builder, self.special.isa.lanes
        before = I64(0)
        for vectors, function in self.panels.items():
            count, keys = self.counts[vectors], vectors * lanes

            def panel(
                number: ir.Value,
                before: ir.Value = before,
                function: ir.Function = function,
                keys: int = keys,
            ) -> None:
                first = b.add(before, b.mul(number, I64(keys)))
                of_panel = code.at(self.packed_keys, b.mul(first, I64(self.special.depth)), F32)
                scores = code.at(self.scores, first, F32)
                arguments = [self.packed_queries, of_panel, scores, self.score_stride, groups]
                b.call(function, arguments)

            code.for_each(I64(0), count, panel)
            before = b.add(before, b.mul(count, I64(keys)))

    def _group(self, place: dict[str, ir.Value], first: ir.Value, group: ir.Value) -> None:
        """Emits the softmax of a group's rows and their product with the values."""
        code, b, special = self.code, self.code.builder, self.special
        begin = b.mul(group, I64(special.rows))
        numbers = [b.add(begin, I64(r)) for r in range(special.rows)]
        scores = [code.at(self.scores, b.mul(number, self.score_stride), F32) for number in numbers]
        rows = [b.add(first, number) for number in numbers]
        masks = [self._row("mask", place["mask"], row) for row in rows] if special.masked else []
        scales = Softmax(code, special, scores, masks, self.keys).emit()
        targets = [self._row("y", place["y"], row) for row in rows]
        emit_values(code, special, scores, self.packed_values, self.keys, scales, targets)
