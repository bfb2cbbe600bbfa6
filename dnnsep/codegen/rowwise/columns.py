"""The code of a reduction of pixels: down the columns of an image, some channels at a time.

The order in which a channel's pixels are added up depends on the number of channels and on the
vectors only, and not on the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.rowwise.expression import Expression, Input, Number
from dnnsep.codegen.rowwise.operators import OPERATORS, REDUCTIONS
from dnnsep.codegen.rowwise.special import PixelReduction
from dnnsep.codegen.rowwise.task import Fields
from dnnsep.codegen.task import KERNEL_TYPES, share

# The vectors of channels that are reduced side by side: few, so that there are blocks of them for
# many threads.
_VECTORS = 2
# So many sums are kept of them, each of some of the pixels: an addition takes some cycles, and one
# or two start in each.
_SUMS = 8


def blocks(channels: int, isa: Isa) -> int:
    """Returns how many blocks of channels there are that are reduced side by side."""
    return -(-channels // (_VECTORS * isa.lanes))


def emit_columns(special: PixelReduction) -> ir.Module:
    """Returns a module with ``run(task, part, scratch)``, which does one part; ``task`` points to a
    RowwiseTask."""
    module = ir.Module()
    module.triple = ""
    _Part(module, special).emit()
    return module


class _Part:
    """Writes ``run(task, number, scratch)``: an equal share of the blocks of all images."""

    def __init__(self, module: ir.Module, special: PixelReduction) -> None:
        self.special, self.isa = special, special.isa
        self.element, self.vector = ELEMENTS[special.dtype], ir.VectorType(F32, self.isa.lanes)
        self.reduction = REDUCTIONS[special.reduction]
        self.code = Code(module, "run", KERNEL_TYPES)
        task, self.number, _ = self.code.arguments
        fields = Fields(self.code, task)
        self.x, self.y = fields.address("x0"), fields.address("y")
        self.pitch, self.y_pitch = fields.count("pitch0"), fields.count("y_pitch")
        self.images, self.pixels = fields.count("images"), fields.count("pixels")
        self.parts = fields.count("parts")

    def emit(self) -> ir.Function:
        code, b = self.code, self.code.builder
        count = blocks(self.special.channels, self.isa)
        wide = _VECTORS * self.isa.lanes
        last_width = self.special.channels - (count - 1) * wide

        def one(unit: ir.Value) -> None:
            image, block = b.sdiv(unit, I64(count)), b.srem(unit, I64(count))
            channel = b.mul(block, I64(wide))
            first = b.add(b.mul(b.mul(image, self.pixels), self.pitch), channel)
            x = code.at(self.x, first, self.element.type)
            y = code.at(self.y, b.add(b.mul(image, self.y_pitch), channel), self.element.type)
            if last_width == wide or count == 1:
                self._block(x, y, last_width)
                return
            with b.if_else(b.icmp_signed("<", block, I64(count - 1))) as (whole, rest):
                with whole:
                    self._block(x, y, wide)
                with rest:
                    self._block(x, y, last_width)

        first, last = share(code, b.mul(self.images, I64(count)), self.number, self.parts)
        code.for_each(first, last, one)
        return code.end()

    def _block(self, x: ir.Value, y: ir.Value, width: int) -> None:
        """Emits so many channels: from where they are in an image's first pixel to the result."""
        code, b, lanes = self.code, self.code.builder, self.isa.lanes
        # The first channel of each vector, and how many of its lanes are in the block.
        vectors = [(start, min(lanes, width - start)) for start in range(0, width, lanes)]
        at_once = _SUMS // len(vectors)

        def add(count: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
            def body(pixel: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                for index in range(count):
                    row = code.at(x, b.mul(b.add(pixel, I64(index)), self.pitch), self.element.type)
                    for number, (start, inside) in enumerate(vectors):
                        place = code.at(row, start, self.element.type)
                        value = self.element.load(code, place, lanes, inside)
                        value = self._computed(self.special.before, value)
                        at = index * len(vectors) + number
                        sums[at] = self.reduction.combine(code, sums[at], value)
                return sums

            return body

        neutral = code.splat(self.reduction.neutral, self.vector)
        whole = b.mul(b.sdiv(self.pixels, I64(at_once)), I64(at_once))
        sums = [neutral] * (at_once * len(vectors))
        sums = code.for_range(I64(0), whole, add(at_once), sums, at_once)
        sums = code.for_range(whole, self.pixels, add(1), sums)
        for number, (start, inside) in enumerate(vectors):
            total = self._total(sums[number :: len(vectors)])
            result = self._computed(self.special.after, total)
            place = code.at(y, start, self.element.type)
            self.element.store(code, self.isa, result, place, inside)

    def _total(self, sums: Sequence[ir.Value]) -> ir.Value:
        """Returns the reduction of all pixels, of the sums of some each."""
        code, b = self.code, self.code.builder
        total, *others = sums
        for other in others:
            total = self.reduction.combine(code, total, other)
        if not self.reduction.divides:
            return total
        count = b.sitofp(self.pixels, F32)
        return b.fdiv(total, code.broadcast(count, self.isa.lanes))

    def _computed(self, expression: Expression, x: ir.Value) -> ir.Value:
        """Returns an expression of one vector."""
        values: list[ir.Value] = []
        for term in expression.terms:
            if isinstance(term, Input):
                values.append(x)
            elif isinstance(term, Number):
                values.append(self.code.splat(term.value, self.vector))
            else:
                arguments = [values[place] for place in term.arguments]
                values.append(OPERATORS[term.name].emit(self.code, *arguments))
        return values[-1]
