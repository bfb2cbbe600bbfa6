"""In which passes over a row an expression is computed, and what is kept from one to the next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dnnsep.codegen.rowwise.expression import Expression, Input, Number, Operation
from dnnsep.codegen.rowwise.operators import OPERATORS, REDUCTIONS


@dataclass(frozen=True)
class Root:
    """A term that is a reduction, of REDUCTIONS by ``name``, of another term."""

    place: int
    name: str
    argument: int


@dataclass(frozen=True)
class Pass:
    """One pass over a row. Terms are named by their places in the expression.

    ``roots`` are the reductions that it computes, or none in the last pass, which computes the
    result. ``uniform`` are the terms with one value for the row that its vectors are computed from,
    ``costly`` those computed in it that take longer than to be written and read again.
    """

    roots: tuple[Root, ...]
    uniform: tuple[int, ...]
    costly: frozenset[int]


@dataclass(frozen=True)
class Schedule:
    """The passes of an expression, with what is ``kept`` in memory by the pass that computes it for
    later ones. All else is computed again by each pass that needs it. ``uniform`` are all terms
    with one value for a row."""

    passes: tuple[Pass, ...]
    kept: tuple[int, ...]
    uniform: frozenset[int]


@lru_cache(256)
def schedule(expression: Expression) -> Schedule:
    """Returns an expression's passes: one for each level of reductions, and one for the result."""
    terms = expression.terms
    levels = _levels(expression)
    uniform = _uniform(expression)
    passes: list[Pass] = []
    computed: set[int] = set()
    kept: set[int] = set()
    for level in range(max(levels) + 1):
        roots = tuple(
            Root(place, term.name, *term.arguments)
            for place, term in enumerate(terms)
            if isinstance(term, Operation) and _reduces(term) and levels[place] == level + 1
        )
        open_terms = [root.argument for root in roots] or [len(terms) - 1]
        reached: set[int] = set()
        while open_terms:
            place = open_terms.pop()
            if place in reached:
                continue
            reached.add(place)
            if place in computed:
                kept.add(place)
            elif isinstance(term := terms[place], Operation) and place not in uniform:
                open_terms += term.arguments
        costly = {place for place in reached - uniform - computed if _costly(expression, place)}
        passes.append(Pass(roots, tuple(sorted(reached & uniform)), frozenset(costly)))
        computed |= costly
    return Schedule(tuple(passes), tuple(sorted(kept)), uniform)


def _levels(expression: Expression) -> list[int]:
    """Returns for each term how many reductions come one after the other up to it."""
    levels: list[int] = []
    for term in expression.terms:
        level = 0
        if isinstance(term, Operation):
            level = max(levels[place] for place in term.arguments) + _reduces(term)
        levels.append(level)
    return levels


def _uniform(expression: Expression) -> frozenset[int]:
    """Returns the terms with one value for all channels of a row, numbers not among them."""
    uniform: set[int] = set()
    same: set[int] = set()  # numbers, and what is computed of them, too
    for place, term in enumerate(expression.terms):
        if isinstance(term, Number):
            same.add(place)
        elif isinstance(term, Input):
            if term.kind == "pixel":
                uniform.add(place)
        elif _reduces(term):
            uniform.add(place)
        elif same.union(uniform).issuperset(term.arguments):
            (same if same.issuperset(term.arguments) else uniform).add(place)
    return frozenset(uniform)


def _reduces(term: object) -> bool:
    return isinstance(term, Operation) and term.name in REDUCTIONS


def _costly(expression: Expression, place: int) -> bool:
    term = expression.terms[place]
    return isinstance(term, Operation) and term.name in OPERATORS and OPERATORS[term.name].costly
