"""The code of rows of scores: queries by keys, their softmax, and the product with the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from dnnsep.codegen.attention.packing import query_floats
from dnnsep.codegen.attention.power import LOG2_E, power_of_2
from dnnsep.codegen.attention.special import AttentionSpecial
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.emit import F32, I32, I64, POINTER, Code
from dnnsep.codegen.windows.shuffles import shuffle


def emit_panel(module: ir.Module, special: AttentionSpecial, vectors: int) -> ir.Function:
    """Returns f(queries, keys, scores, score stride, groups): the scores of groups of rows by so
    many vectors of keys."""
    arguments = [POINTER, POINTER, POINTER, I64, I64]
    code = Code(module, f"panel{vectors}", arguments).internal()
    queries, keys, scores, stride, groups = code.arguments
    b, rows, lanes, depth = code.builder, special.rows, special.isa.lanes, special.depth
    kind = ir.VectorType(F32, lanes)
    zero = ir.Constant(kind, None)

    def group(number: ir.Value) -> None:
        row = b.mul(number, I64(rows))
        of_group = code.at(queries, b.mul(row, I64(query_floats(special))), F32)

        def step(d: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            place = code.at(keys, b.mul(d, I64(lanes)), F32)
            factors = [
                code.load(code.at(place, v * depth * lanes, F32), kind) for v in range(vectors)
            ]
            results: list[ir.Value] = []
            for r in range(rows):
                query = code.load(
                    code.at(code.at(of_group, r * query_floats(special), F32), d, F32), F32
                )
                spread = code.broadcast(query, lanes)
                for v, factor in enumerate(factors):
                    results.append(code.fma(spread, factor, sums[r * vectors + v]))
            return results

        sums = code.for_range(I64(0), I64(depth), step, [zero] * (rows * vectors))
        for r in range(rows):
            target = code.at(scores, b.mul(b.add(row, I64(r)), stride), F32)
            for v in range(vectors):
                code.store(sums[r * vectors + v], code.at(target, v * lanes, F32))

    code.for_each(I64(0), groups, group)
    return code.end()


class Softmax:
    """Writes the code of a group's rows of scores: each becomes 2 to the power of its distance to
    the row's largest. The rows go side by side, so that they wait together for what takes long."""

    def __init__(
        self,
        code: Code,
        special: AttentionSpecial,
        rows: Sequence[ir.Value],
        masks: Sequence[ir.Value],
        keys: ir.Value,
    ) -> None:
        self.code, self.special, self.rows, self.masks = code, special, rows, masks
        b, lanes = code.builder, special.isa.lanes
        self.kind = ir.VectorType(F32, lanes)
        self.whole = b.mul(b.sdiv(keys, I64(lanes)), I64(lanes))
        self.keys = keys
        numbers = ir.Constant(ir.VectorType(I32, lanes), [I32(n) for n in range(lanes)])
        left = b.trunc(b.sub(keys, self.whole), I32)
        self.inside = b.icmp_signed("<", numbers, code.broadcast(left, lanes))

    def emit(self) -> list[ir.Value]:
        """Returns 1 / sum of each row."""
        b = self.code.builder
        least = self.code.splat(float("-inf"), self.kind)
        most = self._over_rows(self._largest, least)
        self.most = [_folded(self.code, value, _larger) for value in most]
        sums = self._over_rows(self._powers, ir.Constant(self.kind, None))
        totals = [
            _folded(self.code, value, lambda code, x, y: code.builder.fadd(x, y)) for value in sums
        ]
        one = self.code.splat(1.0, self.kind)
        return [b.fdiv(one, total) for total in totals]

    def _over_rows(
        self, body: Callable[[int, ir.Value, ir.Value, bool], ir.Value], first: ir.Value
    ) -> list[ir.Value]:
        """Emits ``body(row, key, carried, whole)`` for each vector of keys of all rows; the last
        one may have fewer. Returns what it carries."""
        code, b, count = self.code, self.code.builder, len(self.rows)

        def one(key: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            return [body(row, key, value, True) for row, value in enumerate(carried)]

        carried = code.for_range(I64(0), self.whole, one, [first] * count, self.special.isa.lanes)
        there = b.icmp_signed("<", self.whole, self.keys)
        before = b.block
        with b.if_then(there):
            after = [body(row, self.whole, value, False) for row, value in enumerate(carried)]
            inside = b.block
        results = []
        for old, new in zip(carried, after, strict=True):
            phi = b.phi(self.kind)
            phi.add_incoming(old, before)
            phi.add_incoming(new, inside)
            results.append(phi)
        return results

    def _largest(self, row: int, key: ir.Value, carried: ir.Value, whole: bool) -> ir.Value:
        """Adds the mask to a vector, and returns the largest in each lane. Lanes beyond the last
        key are copies of it, and get nothing added: they are made infinitely small."""
        code, b = self.code, self.code.builder
        place = code.at(self.rows[row], key, F32)
        score = code.load(place, self.kind)
        if self.masks:
            score = code.fma(self._mask(row, key, whole), code.splat(LOG2_E, self.kind), score)
            code.store(score, place)
        if not whole:
            score = b.select(self.inside, score, code.splat(float("-inf"), self.kind))
        return _larger(code, carried, score)

    def _powers(self, row: int, key: ir.Value, carried: ir.Value, whole: bool) -> ir.Value:
        code, b = self.code, self.code.builder
        place = code.at(self.rows[row], key, F32)
        power = power_of_2(code, b.fsub(code.load(place, self.kind), self.most[row]))
        code.store(power, place)
        if not whole:
            power = b.select(self.inside, power, ir.Constant(self.kind, None))
        return b.fadd(carried, power)

    def _mask(self, row: int, key: ir.Value, whole: bool) -> ir.Value:
        """Returns a vector of the mask, of which only what is inside is read."""
        code, element = self.code, ELEMENTS[self.special.dtype]
        place, lanes = code.at(self.masks[row], key, element.type), self.special.isa.lanes
        if whole:
            return element.load(code, place, lanes, None)
        kind = ir.VectorType(element.type, lanes)
        name = f"llvm.masked.load.v{lanes}{'f32' if element.type is F32 else 'i16'}.p0"
        size = 4 if element.type is F32 else 2
        values = code.call(name, kind, place, I32(size), self.inside, ir.Constant(kind, None))
        return element.widened(code, values)


def _larger(code: Code, first: ir.Value, second: ir.Value) -> ir.Value:
    b = code.builder
    return b.select(b.fcmp_ordered(">", first, second), first, second)


def _added(code: Code, first: ir.Value, second: ir.Value) -> ir.Value:
    return code.builder.fadd(first, second)


def _folded(
    code: Code, value: ir.Value, combine: Callable[[Code, ir.Value, ir.Value], ir.Value]
) -> ir.Value:
    """Returns all lanes combined, in every lane."""
    lanes = value.type.count
    distance = lanes // 2
    while distance:
        other = shuffle(code, value, value, [lane ^ distance for lane in range(lanes)])
        value = combine(code, value, other)
        distance //= 2
    return value


def emit_values(
    code: Code,
    special: AttentionSpecial,
    weights: Sequence[ir.Value],
    values: ir.Value,
    keys: ir.Value,
    scales: Sequence[ir.Value],
    targets: Sequence[ir.Value],
) -> None:
    """Emits the rows of a group: weights by values, times a scale for each row."""
    b, lanes, element = code.builder, special.isa.lanes, ELEMENTS[special.dtype]
    kind = ir.VectorType(F32, lanes)
    zero = ir.Constant(kind, None)
    for start in range(0, special.value_vectors, special.most_vectors):
        vectors = range(start, min(start + special.most_vectors, special.value_vectors))

        def step(key: ir.Value, sums: list[ir.Value], vectors: range = vectors) -> list[ir.Value]:
            row = code.at(values, b.mul(key, I64(special.value_vectors * lanes)), F32)
            factors = [code.load(code.at(row, v * lanes, F32), kind) for v in vectors]
            results: list[ir.Value] = []
            for r, of_row in enumerate(weights):
                weight = code.load(code.at(of_row, key, F32), F32)
                spread = code.broadcast(weight, lanes)
                for n, factor in enumerate(factors):
                    results.append(code.fma(spread, factor, sums[r * len(vectors) + n]))
            return results

        sums = code.for_range(I64(0), keys, step, [zero] * (len(weights) * len(vectors)))
        for r, (target, scale) in enumerate(zip(targets, scales, strict=True)):
            for n, v in enumerate(vectors):
                result = b.fmul(sums[r * len(vectors) + n], scale)
                left = min(lanes, special.value_depth - v * lanes)
                place = code.at(target, v * lanes, element.type)
                element.store(code, special.isa, result, place, left)
