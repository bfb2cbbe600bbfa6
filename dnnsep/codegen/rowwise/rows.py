"""The code of a row-wise kernel: which rows a part has, and where they are."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from dnnsep.codegen.lang.dtype import TENSOR_ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, Code
from dnnsep.codegen.rowwise.expression import Input
from dnnsep.codegen.rowwise.row import Row, RowCode
from dnnsep.codegen.rowwise.special import Rowwise
from dnnsep.codegen.rowwise.task import Fields
from dnnsep.codegen.task import KERNEL_TYPES, share


def emit_rows(special: Rowwise) -> ir.Module:
    """Returns a module with ``run(task, part, scratch)``, which does one part; ``task`` points to a
    RowwiseTask."""
    module = ir.Module()
    module.triple = ""
    _Part(module, special).emit()
    return module


class _Part:
    """Writes ``run(task, number, scratch)``: an equal share of all rows, in whole numbers of those
    that are computed as one."""

    def __init__(self, module: ir.Module, special: Rowwise) -> None:
        self.special, self.inputs = special, special.inputs
        self.code = Code(module, "run", KERNEL_TYPES)
        task, self.number, self.scratch = self.code.arguments
        fields = Fields(self.code, task)
        self.x = [fields.address(f"x{operand.number}") for operand in self.inputs]
        self.pitches = [fields.count(f"pitch{operand.number}") for operand in self.inputs]
        self.y, self.y_pitch = fields.address("y"), fields.count("y_pitch")
        self.images, self.pixels = fields.count("images"), fields.count("pixels")
        self.parts = fields.count("parts")

    def emit(self) -> ir.Function:
        code, b, together = self.code, self.code.builder, self.special.together
        rows = b.mul(self.images, self.pixels)
        units = b.sdiv(b.add(rows, I64(together - 1)), I64(together))
        first, last = (
            code.least(b.mul(end, I64(together)), rows)
            for end in share(code, units, self.number, self.parts)
        )
        if any(operand.kind == "image" for operand in self.inputs):
            self._images(first, last)
        else:
            self._rows(first, last, I64(0))
        return code.end()

    def _images(self, first: ir.Value, last: ir.Value) -> None:
        """Emits the rows [first, last) image by image."""
        code, b = self.code, self.code.builder

        def one(image: ir.Value) -> None:
            begin = b.mul(image, self.pixels)
            end = b.add(begin, self.pixels)
            self._rows(code.most(begin, first), code.least(end, last), image)

        beyond = b.sdiv(b.add(last, b.sub(self.pixels, I64(1))), self.pixels)
        code.for_each(b.sdiv(first, self.pixels), beyond, one)

    def _rows(self, first: ir.Value, last: ir.Value, image: ir.Value) -> None:
        """Emits rows [first, last) of an image."""
        code, special = self.code, self.special

        def some(count: int) -> Callable[[ir.Value], None]:
            def body(row: ir.Value) -> None:
                rows = [
                    self._row(code.builder.add(row, I64(index)), image) for index in range(count)
                ]
                RowCode(code, special, rows, self.scratch).emit()

            return body

        if special.together > 1:
            begin, first = first, self._after(first, last, special.together, self._dense())
            code.when(
                code.builder.icmp_signed("<", begin, first),
                lambda: self._joined(begin, first, image),
            )
        if special.side_by_side > 1:
            begin, first = first, self._after(first, last, special.side_by_side)
            code.for_each(begin, first, some(special.side_by_side), step=special.side_by_side)
        code.for_each(first, last, some(1))

    def _after(
        self, first: ir.Value, last: ir.Value, count: int, allowed: ir.Value | None = None
    ) -> ir.Value:
        """Returns the row after all of [first, last) that can be taken so many at a time; the first
        one where that is not allowed."""
        b = self.code.builder
        rows = b.mul(b.sdiv(b.sub(last, first), I64(count)), I64(count))
        if allowed is not None:
            rows = b.select(allowed, rows, I64(0))
        return b.add(first, rows)

    def _joined(self, first: ir.Value, last: ir.Value, image: ir.Value) -> None:
        """Emits rows [first, last), several at a time as one."""
        code, together = self.code, self.special.together
        places: dict[Input, ir.Value] = {}
        for number, operand in enumerate(self.special.repeated):
            room = number * self.special.repeated_floats
            places[operand] = code.at(self.scratch, room, F32)
            self._repeat(operand, self._row_of(operand, first, image), places[operand])

        def one(row: ir.Value) -> None:
            operands = [
                places[operand] if operand in places else self._row_of(operand, row, image)
                for operand in self.inputs
            ]
            joined = Row(operands, self._target(row))
            RowCode(code, self.special, [joined], self.scratch, together).emit()

        code.for_each(first, last, one, step=together)

    def _repeat(self, operand: Input, source: ir.Value, target: ir.Value) -> None:
        """Emits writing an operand in f32 as often as rows are computed as one. The end of the last
        vector of each time is what the next time begins with."""
        code, b = self.code, self.code.builder
        channels, lanes = self.special.channels, self.special.isa.lanes
        element = TENSOR_ELEMENTS[self.special.dtype_of(operand)]
        values = [
            element.load(
                code, code.at(source, start, element.type), lanes, min(lanes, channels - start)
            )
            for start in range(0, channels, lanes)
        ]

        def one(time: ir.Value) -> None:
            place = code.at(target, b.mul(time, I64(channels)), F32)
            for number, value in enumerate(values):
                code.store(value, code.at(place, number * lanes, F32))

        code.for_each(0, self.special.together, one)

    def _dense(self) -> ir.Value:
        """Returns whether the rows of all tensors of pixels lie one after the other."""
        b, channels = self.code.builder, I64(self.special.channels)
        dense = b.icmp_signed("==", self.y_pitch, channels)
        for operand, pitch in zip(self.inputs, self.pitches, strict=True):
            if operand.kind == "pixels":
                dense = b.and_(dense, b.icmp_signed("==", pitch, channels))
        return dense

    def _row(self, row: ir.Value, image: ir.Value) -> Row:
        operands = [self._row_of(operand, row, image) for operand in self.inputs]
        return Row(operands, self._target(row))

    def _row_of(self, operand: Input, row: ir.Value, image: ir.Value) -> ir.Value:
        """Returns the address of a row of an operand."""
        b, kind = self.code.builder, TENSOR_ELEMENTS[self.special.dtype_of(operand)].type
        place = {
            "pixels": lambda: b.mul(row, self.pitches[operand.number]),
            "image": lambda: b.mul(image, I64(self.special.channels)),
            "channels": lambda: I64(0),
            "pixel": lambda: row,
        }[operand.kind]()
        return self.code.at(self.x[operand.number], place, kind)

    def _target(self, row: ir.Value) -> ir.Value:
        kind = TENSOR_ELEMENTS[self.special.dtype].type
        return self.code.at(self.y, self.code.builder.mul(row, self.y_pitch), kind)
