"""The code of rows of channels: pass by pass, some of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.lang.dtype import TENSOR_ELEMENTS
from dnnsep.codegen.lang.emit import F32, I64, Code
from dnnsep.codegen.rowwise.expression import Input, Number, Operation
from dnnsep.codegen.rowwise.fold import UNIFORM, folded, inside, shuffled, tree
from dnnsep.codegen.rowwise.operators import OPERATORS, REDUCTIONS
from dnnsep.codegen.rowwise.schedule import Pass, Root, schedule
from dnnsep.codegen.rowwise.special import UNROLLED, Rowwise

# The vectors of one turn of a loop. Each has sums of its own: an addition takes as many cycles.
_AT_ONCE = 4


@dataclass(frozen=True)
class Row:
    """The addresses of a row in each operand (of an operand that is repeated: of its repetitions),
    and of its result."""

    operands: Sequence[ir.Value]
    target: ir.Value


@dataclass(frozen=True)
class _Place:
    """A vector of a row: its first channel, and which of its lanes are in the row and in no vector
    before it; all up to the last of these may be read. ``number`` is which vector it is, where the
    row is written out."""

    start: ir.Value
    lanes: range
    number: int | None = None


# The sums of a reduction, for each vector of a turn; None where none was added yet.
_Sums = list["ir.Value | None"]
# What gives the value of a term at a vector of a row, all by their numbers.
_Values = Callable[[int, int, _Place], ir.Value]


class RowCode:
    """Writes the code of neighbouring rows, side by side, so that they wait together for what takes
    long. Longer ones than a few vectors are loops, and then it is a single row.

    ``joined`` rows one after the other in memory are one here. ``scratch`` is the address of memory
    for what is kept.
    """

    def __init__(
        self,
        code: Code,
        special: Rowwise,
        rows: Sequence[Row],
        scratch: ir.Value,
        joined: int = 1,
    ) -> None:
        self.code, self.special, self.joined = code, special, joined
        self.rows, self.scratch = rows, scratch
        self.terms, self.schedule = special.expression.terms, schedule(special.expression)
        self.lanes = special.isa.lanes
        self.vector = ir.VectorType(F32, self.lanes)
        self.width = joined * special.channels
        self.written_out = self.width <= UNROLLED * self.lanes
        self.places = self._places()
        # By term: its values for the rows, and where they are written out, those for each vector.
        self.uniform: dict[int, ir.Value] = {}
        self.known: dict[tuple[int, int | None], dict[int, ir.Value]] = {}

    def emit(self) -> None:
        *reductions, last = self.schedule.passes
        for one in reductions:
            self._reduce(one)
        self._write(last)

    def _write(self, one: Pass) -> None:
        """Emits the last pass, which writes the result."""
        values = self._values(one)
        for row in range(len(self.rows)):
            self._write_row(row, values)

    def _write_row(self, row: int, values: _Values) -> None:
        """Emits writing a row. Its last vector has channels of the one before: it is read before
        that one is written, which may be in the same place."""
        element, isa = TENSOR_ELEMENTS[self.special.dtype], self.special.isa
        result = len(self.terms) - 1

        def store(place: _Place, value: ir.Value) -> None:
            target = self.code.at(self.rows[row].target, place.start, element.type)
            element.store(self.code, isa, value, target, place.lanes.stop)

        def turn(places: list[_Place]) -> None:
            computed = [values(row, result, place) for place in places]
            for place, value in zip(places, computed, strict=True):
                store(place, value)

        *before, last = self.places
        late = values(row, result, last)
        if self.written_out:
            rest = before
        else:
            whole = (len(self.places) - 1) // _AT_ONCE * _AT_ONCE
            stop, step = whole * self.lanes, _AT_ONCE * self.lanes
            self.code.for_each(0, stop, lambda at: turn(self._turn(at)), step=step)
            rest = before[whole:]
        for first in range(0, len(rest), _AT_ONCE):
            turn(rest[first : first + _AT_ONCE])
        store(last, late)

    def _reduce(self, one: Pass) -> None:
        """Emits a pass that computes reductions."""
        values = self._values(one)
        totals = [self._totals(one.roots, row, values) for row in range(len(self.rows))]
        for number, root in enumerate(one.roots):
            reduction = REDUCTIONS[root.name]
            total = folded(self.code, reduction, [of_row[number] for of_row in totals])
            if reduction.divides:
                count = self.code.splat(float(self.special.channels), UNIFORM)
                total = self.code.builder.fdiv(total, count)
            self.uniform[root.place] = total

    def _totals(self, roots: Sequence[Root], row: int, values: _Values) -> list[ir.Value]:
        """Returns a vector for each reduction: of all vectors of a row."""
        sums: list[_Sums] = [[None] * _AT_ONCE for _ in roots]

        def add(index: int, place: _Place) -> None:
            for root, of_root in zip(roots, sums, strict=True):
                of_root[index] = self._added(root, of_root[index], row, place, values)

        full = self.width // self.lanes
        whole = 0 if self.written_out else full // _AT_ONCE * _AT_ONCE
        if whole:
            self._loop(roots, sums, add, whole)
        for number, place in enumerate(self.places[whole:]):
            add(number % _AT_ONCE, place)
        return [
            tree(self.code, REDUCTIONS[root.name], [total for total in of_root if total])
            for root, of_root in zip(roots, sums, strict=True)
        ]

    def _added(
        self, root: Root, total: ir.Value | None, row: int, place: _Place, values: _Values
    ) -> ir.Value:
        """Returns what a vector makes of the total of those before it."""
        reduction, factors = REDUCTIONS[root.name], self._factors(root.argument)
        whole = place.lanes == range(self.lanes)
        if total is not None and whole and factors and reduction.of_product:
            x, y = (values(row, factor, place) for factor in factors)
            return reduction.of_product(self.code, total, x, y)
        value = values(row, root.argument, place)
        added = inside(self.code, reduction, value, place.lanes)
        return added if total is None else reduction.combine(self.code, total, added)

    def _loop(
        self,
        roots: Sequence[Root],
        sums: list[_Sums],
        add: Callable[[int, _Place], None],
        vectors: int,
    ) -> None:
        """Emits adding up so many whole vectors as a loop, which carries the sums."""
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
            for index, place in enumerate(self._turn(at)):
                add(index, place)
            return [total for of_root in sums for total in of_root]

        stop, step = I64(vectors * self.lanes), _AT_ONCE * self.lanes
        enter(self.code.for_range(I64(0), stop, body, neutral, step))

    def _turn(self, at: ir.Value) -> list[_Place]:
        """Returns the vectors of one turn of a loop."""
        starts = [self.code.builder.add(at, I64(n * self.lanes)) for n in range(_AT_ONCE)]
        return [_Place(start, range(self.lanes)) for start in starts]

    def _places(self) -> list[_Place]:
        """Returns all vectors of a row. The last one of several ends where the row does, and has
        some channels of the one before, since masks take long on some CPUs."""
        places: list[_Place] = []
        for number, start in enumerate(range(0, self.width, self.lanes)):
            left = self.width - start
            lanes = range(min(self.lanes, left))
            if number and left < self.lanes:
                start, lanes = self.width - self.lanes, range(self.lanes - left, self.lanes)
            places.append(_Place(I64(start), lanes, number))
        return places

    def _values(self, one: Pass) -> _Values:
        """Returns what gives values in a pass."""
        spread: list[dict[int, ir.Value]] = [{} for _ in self.rows]
        if self.joined == 1:
            for row, of_row in enumerate(spread):
                for term in one.uniform:
                    lanes = [row] * self.lanes
                    of_row[term] = shuffled(self.code, self._of_rows(term), lanes)
        in_loop: dict[ir.Value, dict[int, ir.Value]] = {}

        def value(row: int, term: int, place: _Place) -> ir.Value:
            if self.written_out:
                known = self.known.setdefault((row, place.number), {})
            else:
                known = in_loop.setdefault(place.start, {})
            for uniform, vector in spread[row].items():
                known.setdefault(uniform, vector)
            return self._value(term, self.rows[row], place, one, known)

        return value

    def _value(
        self, number: int, row: Row, place: _Place, one: Pass, known: dict[int, ir.Value]
    ) -> ir.Value:
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
            value = self._read(term, row, place)
        else:
            value = self._operation(
                term, lambda argument: self._value(argument, row, place, one, known)
            )
            if keeps:
                self.code.store(value, self._kept(number, place))
        known[number] = value
        return value

    def _operation(self, term: Operation, value: Callable[[int], ir.Value]) -> ir.Value:
        """Returns an operator applied to values; a product in a sum is not rounded by itself."""
        if term.name in ("add", "sub"):
            first, second = term.arguments
            negative = self.code.builder.fneg if term.name == "sub" else lambda x: x
            if factors := self._factors(first):
                x, y = map(value, factors)
                return self.code.fma(x, y, negative(value(second)))
            if factors := self._factors(second):
                x, y = map(value, factors)
                return self.code.fma(negative(x), y, value(first))
        arguments = [value(argument) for argument in term.arguments]
        return OPERATORS[term.name].emit(self.code, *arguments)

    def _factors(self, number: int) -> tuple[int, int] | None:
        """Returns the terms whose product a term is, one with a value for each channel."""
        term = self.terms[number]
        uniform = self.joined == 1 and number in self.schedule.uniform
        if uniform or not isinstance(term, Operation) or term.name not in ("mul", "square"):
            return None
        return term.arguments[0], term.arguments[-1]

    def _kept(self, number: int, place: _Place) -> ir.Value:
        room = self.schedule.kept.index(number) * self.special.kept_floats
        return self.code.at(self.code.at(self.scratch, room, F32), place.start, F32)

    def _read(self, term: Input, row: Row, place: _Place) -> ir.Value:
        """Returns a vector of an operand."""
        code, operand = self.code, row.operands[term.number]
        if self.joined > 1 and term in self.special.repeated:
            return code.load(code.at(operand, place.start, F32), self.vector)
        element = TENSOR_ELEMENTS[self.special.dtype_of(term)]
        if term.kind == "pixel":  # of rows that are one; of others it is uniform
            assert place.number is not None
            pixels = element.load(code, operand, self.joined, None)
            channels = range(place.number * self.lanes, (place.number + 1) * self.lanes)
            of_pixel = [channel // self.special.channels for channel in channels]
            return shuffled(code, pixels, of_pixel)
        place_of = code.at(operand, place.start, element.type)
        return element.load(code, place_of, self.lanes, place.lanes.stop)

    def _of_rows(self, number: int) -> ir.Value:
        """Returns the values of a term that is the same for all channels: a lane for each row."""
        if number not in self.uniform:
            term = self.terms[number]
            if isinstance(term, Number):
                value = self.code.splat(term.value, UNIFORM)
            elif isinstance(term, Input):
                element, count = TENSOR_ELEMENTS[self.special.dtype_of(term)], len(self.rows)
                first = self.rows[0].operands[term.number]
                of_rows = element.load(self.code, first, count, None)
                lanes = [min(lane, count - 1) for lane in range(UNIFORM.count)]
                value = shuffled(self.code, of_rows, lanes)
            else:
                arguments = [self._of_rows(argument) for argument in term.arguments]
                value = OPERATORS[term.name].emit(self.code, *arguments)
            self.uniform[number] = value
        return self.uniform[number]
