"""Expressions: what a row-wise kernel computes of each row of channels.

They are written as in ``activation("relu", pixels(0) * channels(1) + channels(2))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dnnsep.codegen.rowwise.operators import OPERATORS, REDUCTIONS
from dnnsep.dtypes import TENSOR_DTYPES

# pixels: a row for each pixel. image: a row for each image, the same for all of its pixels.
# channels: one row for all. pixel: a number for each pixel, the same for all of its channels.
Kind = Literal["pixels", "image", "channels", "pixel"]

MOST_INPUTS = 8


@dataclass(frozen=True)
class Input:
    """An operand of a kernel, by its number; its dtype is that of the kernel where it is None."""

    number: int
    kind: Kind
    dtype: str | None = None


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True)
class Operation:
    """An operator of OPERATORS or a reduction of REDUCTIONS, by name, applied to earlier terms of
    an expression, by their places in it."""

    name: str
    arguments: tuple[int, ...]


Term = Input | Number | Operation


@dataclass(frozen=True)
class Expression:
    """Terms, each after those that it is applied to, and no two alike; the last is the result."""

    terms: tuple[Term, ...]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The operands in order. Raises ValueError where their numbers are not 0, 1, and so on."""
        found = sorted(
            (term for term in self.terms if isinstance(term, Input)), key=lambda term: term.number
        )
        if [term.number for term in found] != list(range(len(found))):
            raise ValueError(f"inputs {found}: must be numbered 0, 1, ..., each of one kind")
        return tuple(found)

    @property
    def reduces(self) -> bool:
        """Whether a row's channels are summed up somewhere."""
        return any(isinstance(term, Operation) and term.name in REDUCTIONS for term in self.terms)

    def __add__(self, other: Operand) -> Expression:
        return apply("add", self, other)

    def __radd__(self, other: Operand) -> Expression:
        return apply("add", other, self)

    def __sub__(self, other: Operand) -> Expression:
        return apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Expression:
        return apply("sub", other, self)

    def __mul__(self, other: Operand) -> Expression:
        return apply("mul", self, other)

    def __rmul__(self, other: Operand) -> Expression:
        return apply("mul", other, self)

    def __truediv__(self, other: Operand) -> Expression:
        return apply("div", self, other)

    def __rtruediv__(self, other: Operand) -> Expression:
        return apply("div", other, self)

    def __neg__(self) -> Expression:
        return apply("neg", self)


Operand = Expression | float


def apply(name: str, *arguments: Operand) -> Expression:
    """Returns an operator or a reduction applied to expressions and numbers.

    Raises ValueError for a name that is not known and for another number of arguments than it
    takes.
    """
    if name not in OPERATORS and name not in REDUCTIONS:
        known = ", ".join((*OPERATORS, *REDUCTIONS))
        raise ValueError(f"operator {name!r}: must be one of {known}")
    arity = OPERATORS[name].arity if name in OPERATORS else 1
    if len(arguments) != arity:
        raise ValueError(f"operator {name!r}: takes {arity} arguments, not {len(arguments)}")
    terms: dict[Term, int] = {}
    places = tuple(_enter(terms, argument) for argument in arguments)
    return Expression((*terms, Operation(name, places)))


def _enter(terms: dict[Term, int], argument: Operand) -> int:
    """Adds an argument's terms to those that are there; returns the place of its result."""
    if not isinstance(argument, Expression):
        argument = number(argument)
    places: list[int] = []
    for term in argument.terms:
        if isinstance(term, Operation):
            term = Operation(term.name, tuple(places[place] for place in term.arguments))
        places.append(terms.setdefault(term, len(terms)))
    return places[-1]


def number(value: float) -> Expression:
    """Returns a constant; zero has no sign."""
    return Expression((Number(float(value) + 0.0),))


def operand(number: int, kind: Kind, dtype: str | None = None) -> Expression:
    """Returns the number-th operand. Raises ValueError for what no kernel can take."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r}: must be one of {', '.join(get_args(Kind))}")
    if not 0 <= number < MOST_INPUTS:
        raise ValueError(f"input {number}: a kernel has {MOST_INPUTS} at most")
    if dtype not in (None, *TENSOR_DTYPES):
        raise ValueError(f"dtype {dtype!r}: must be one of {', '.join(TENSOR_DTYPES)}")
    return Expression((Input(number, kind, dtype),))


def pixels(number: int, dtype: str | None = None) -> Expression:
    """Returns an operand with a row for each pixel."""
    return operand(number, "pixels", dtype)


def image(number: int, dtype: str | None = None) -> Expression:
    """Returns an operand with a row for each image, the same for all of its pixels."""
    return operand(number, "image", dtype)


def channels(number: int, dtype: str | None = None) -> Expression:
    """Returns an operand with one row for all pixels."""
    return operand(number, "channels", dtype)


def pixel(number: int, dtype: str | None = None) -> Expression:
    """Returns an operand with a number for each pixel, the same for all of its channels."""
    return operand(number, "pixel", dtype)


def layer_norm(x: Expression, eps: float) -> Expression:
    """Returns the rows of x with mean 0 and variance 1; ``eps`` is added to the variance."""
    rest = x - apply("mean", x)
    return rest * apply("rsqrt", apply("mean", apply("square", rest)) + eps)


def rms_norm(x: Expression, eps: float) -> Expression:
    """Returns the rows of x with a mean square of 1, to which ``eps`` is added."""
    return x * apply("rsqrt", apply("mean", apply("square", x)) + eps)


def softmax(x: Expression) -> Expression:
    """Returns exp(x) of each row divided by its sum; the row's largest is taken off before, so that
    none is infinite."""
    power = apply("exp", x - apply("max", x))
    return power * (1.0 / apply("sum", power))
