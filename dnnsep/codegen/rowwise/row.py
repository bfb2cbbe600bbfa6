"""The code of a row of channels, or of several one after the other in memory: pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I1, I32, I64, Code
from dnnsep.codegen.rowwise.expression import Input, Number
from dnnsep.codegen.rowwise.operators import OPERATORS, REDUCTIONS
from dnnsep.codegen.rowwise.schedule import Pass, Root, schedule
from dnnsep.codegen.rowwise.special import UNROLLED, Rowwise

# The vectors of one turn of a loop. Each has sums of its own: an addition takes as many cycles.
_AT_ONCE = 4
# What is the same for all channels of a row is computed in vectors of so many.
_UNIFORM = ir.VectorType(F32, 4)


@dataclass(frozen=True)
class _Place:
    """A vector of a row: its first channel, and how many of its lanes are in the row, None for all.
    ``number`` is which one it is, where the row is written out."""

    start: ir.Value
    lanes: int | None = None
    number: int | None = None


# The sums of each reduction of a pass, for each vector of a turn; None where none was added yet.
_Sums = list[list["ir.Value | None"]]


class RowCode:
    """Writes the code of one row, or of ``rows`` as one.

    ``operands`` are the addresses of the row in each operand (of one that is repeated: of its
    repetitions), ``target`` that of the result, ``scratch`` of memory for what is kept.
    """

    def __init__(
        self,
        code: Code,
        special: Rowwise,
        operands: Sequence[ir.Value],
        target: ir.Value,
        scratch: ir.Value,
        rows: int = 1,
    ) -> None:
        self.code, self.special, self.rows = code, special, rows
        self.operands, self.target, self.scratch = operands, target, scratch
        self.terms, self.schedule = special.expression.terms, schedule(special.expression)
        self.lanes = special.isa.lanes
        self.vector = ir.VectorType(F32, self.lanes)
        self.width = rows * special.channels
        self.written_out = self.width <= UNROLLED * self.lanes
        # By term: its value for the row, or, where the row is written out, for each vector.
        self.uniform: dict[int, ir.Value] = {}
        self.known: dict[int, dict[int, ir.Value]] = {}

    def emit(self) -> None:
        *reductions, last = self.schedule.passes
        for one in reductions:
            self._reduce(one)
        self._write(last)

    def _write(self, one: Pass) -> None:
        """Emits the last pass, which writes the result."""
        value = self._values(one)
        element, isa = ELEMENTS[self.special.dtype], self.special.isa

        def turn(places: list[_Place]) -> None:
            results = [value(len(self.terms) - 1, place) for place in places]
            for place, result in zip(places, results, strict=True):
                target = self.code.at(self.target, place.start, element.type)
                element.store(self.code, isa, result, target, place.lanes)

        if self.written_out:
            self._each_turn(turn)
            return
        whole = self._whole()
        self.code.for_each(
            0, whole * self.lanes, lambda at: turn(self._turn(at)), step=_AT_ONCE * self.lanes
        )
        if rest := self._places()[whole:]:
            turn(rest)

    def _reduce(self, one: Pass) -> None:
        """Emits a pass that computes reductions."""
        value = self._values(one)
        sums: _Sums = [[None] * _AT_ONCE for _ in one.roots]

        def turn(places: list[_Place]) -> None:
            for root, of_root in zip(one.roots, sums, strict=True):
                for index, place in enumerate(places):
                    added = self._inside(root, value(root.argument, place), place)
                    of_root[index] = self._combined(root, of_root[index], added)

        if self.written_out:
            self._each_turn(turn)
        else:
            self._loop(one.roots, sums, turn)
            if rest := self._places()[self._whole() :]:
                turn(rest)
        for root, of_root in zip(one.roots, sums, strict=True):
            self.uniform[root.place] = self._finished(root, of_root)

    def _loop(
        self, roots: Sequence[Root], sums: _Sums, turn: Callable[[list[_Place]], None]
    ) -> None:
        """Emits the turns of whole vectors as a loop, which carries the sums."""
        neutral = [
            self.code.splat(REDUCTIONS[root.name].neutral, self.vector)
            for root in roots
            for _ in range(_AT_ONCE)
        ]

        def enter(values: Sequence[ir.Value]) -> None:
            for number, of_root in enumerate(sums):
                of_root[:] = values[number * _AT_ONCE : (number + 1) * _AT_ONCE]

        def body(at: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            enter(carried)
            turn(self._turn(at))
            return [total for of_root in sums for total in of_root]

        stop, step = I64(self._whole() * self.lanes), _AT_ONCE * self.lanes
        enter(self.code.for_range(I64(0), stop, body, neutral, step))

    def _finished(self, root: Root, sums: Sequence[ir.Value | None]) -> ir.Value:
        """Returns a reduction of the row, of the sums of its vectors."""
        b = self.code.builder
        totals = [total for total in sums if total is not None]
        while len(totals) > 1:
            half = -(-len(totals) // 2)
            pairs = zip(totals[:half], [*totals[half:], None], strict=False)
            totals = [self._combined(root, x, y) if y is not None else x for x, y in pairs]
        (total,) = totals
        lanes = self.lanes
        while lanes > _UNIFORM.count:
            lanes //= 2
            total = self._combined(
                root,
                self._shuffled(total, range(lanes)),
                self._shuffled(total, range(lanes, 2 * lanes)),
            )
        for distance in (2, 1):
            other = self._shuffled(total, [lane ^ distance for lane in range(_UNIFORM.count)])
            total = self._combined(root, total, other)
        if not REDUCTIONS[root.name].divides:
            return total
        return b.fdiv(total, self.code.splat(float(self.special.channels), _UNIFORM))

    def _combined(self, root: Root, total: ir.Value | None, added: ir.Value) -> ir.Value:
        if total is None:
            return added
        return REDUCTIONS[root.name].combine(self.code, total, added)

    def _inside(self, root: Root, value: ir.Value, place: _Place) -> ir.Value:
        """Returns a vector that changes nothing in lanes outside the row."""
        if place.lanes is None:
            return value
        mask = [I1(lane < place.lanes) for lane in range(self.lanes)]
        neutral = self.code.splat(REDUCTIONS[root.name].neutral, self.vector)
        inside = ir.Constant(ir.VectorType(I1, self.lanes), mask)
        return self.code.builder.select(inside, value, neutral)

    def _whole(self) -> int:
        """Returns the vectors of the turns that are a loop."""
        return self.width // self.lanes // _AT_ONCE * _AT_ONCE

    def _turn(self, at: ir.Value) -> list[_Place]:
        b = self.code.builder
        return [_Place(b.add(at, I64(index * self.lanes))) for index in range(_AT_ONCE)]

    def _places(self) -> list[_Place]:
        """Returns all vectors of the row."""
        return [
            _Place(I64(start), None if left >= self.lanes else left, start // self.lanes)
            for start in range(0, self.width, self.lanes)
            for left in (self.width - start,)
        ]

    def _each_turn(self, turn: Callable[[list[_Place]], None]) -> None:
        places = self._places()
        for first in range(0, len(places), _AT_ONCE):
            turn(places[first : first + _AT_ONCE])

    def _values(self, one: Pass) -> Callable[[int, _Place], ir.Value]:
        """Returns what gives the value of a term at a vector, in a pass."""
        spread: dict[int, ir.Value] = {}
        if self.rows == 1:
            spread = {
                place: self._shuffled(self._of_row(place), [0] * self.lanes)
                for place in one.uniform
            }
        last: dict[ir.Value, dict[int, ir.Value]] = {}

        def value(term: int, place: _Place) -> ir.Value:
            if self.written_out and place.number is not None:
                known = self.known.setdefault(place.number, {})
            else:
                known = last.setdefault(place.start, {})
            for uniform, vector in spread.items():
                known.setdefault(uniform, vector)
            return self._value(term, place, one, known)

        return value

    def _value(self, number: int, place: _Place, one: Pass, known: dict[int, ir.Value]) -> ir.Value:
        """Returns the value of a term at a vector; what is ``known`` is not computed again."""
        if number in known:
            return known[number]
        term = self.terms[number]
        keeps = not self.written_out and number in self.schedule.kept
        if keeps and number not in one.costly:
            value = self.code.load(self._kept(number, place), self.vector)
        elif isinstance(term, Number):
            value = self.code.splat(term.value, self.vector)
        elif isinstance(term, Input):
            value = self._read(term, place)
        else:
            arguments = [self._value(argument, place, one, known) for argument in term.arguments]
            value = OPERATORS[term.name].emit(self.code, *arguments)
            if keeps:
                self.code.store(value, self._kept(number, place))
        known[number] = value
        return value

    def _kept(self, number: int, place: _Place) -> ir.Value:
        room = self.schedule.kept.index(number) * self.special.kept_floats
        return self.code.at(self.code.at(self.scratch, room, F32), place.start, F32)

    def _read(self, term: Input, place: _Place) -> ir.Value:
        """Returns a vector of an operand."""
        code, operand = self.code, self.operands[term.number]
        if self.rows > 1 and term in self.special.repeated:
            return code.load(code.at(operand, place.start, F32), self.vector)
        element = ELEMENTS[self.special.dtype_of(term)]
        if term.kind == "pixel":  # of rows computed as one; of one row it is uniform
            assert place.number is not None
            first = place.number * self.lanes
            pixels = element.load(code, operand, self.rows, None)
            channels = self.special.channels
            return self._shuffled(
                pixels, [(first + lane) // channels for lane in range(self.lanes)]
            )
        return element.load(
            code, code.at(operand, place.start, element.type), self.lanes, place.lanes
        )

    def _of_row(self, number: int) -> ir.Value:
        """Returns the value of a term that is the same for all channels of the row."""
        if number not in self.uniform:
            term = self.terms[number]
            if isinstance(term, Number):
                value = self.code.splat(term.value, _UNIFORM)
            elif isinstance(term, Input):
                element = ELEMENTS[self.special.dtype_of(term)]
                one = element.load(self.code, self.operands[term.number], 1, None)
                value = self._shuffled(one, [0] * _UNIFORM.count)
            else:
                arguments = [self._of_row(argument) for argument in term.arguments]
                value = OPERATORS[term.name].emit(self.code, *arguments)
            self.uniform[number] = value
        return self.uniform[number]

    def _shuffled(self, value: ir.Value, lanes: Sequence[int]) -> ir.Value:
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), [I32(lane) for lane in lanes])
        undefined = ir.Constant(value.type, ir.Undefined)
        return self.code.builder.shuffle_vector(value, undefined, mask)
