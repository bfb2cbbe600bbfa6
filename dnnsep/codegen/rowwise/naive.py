"""Expressions in float64 by their definition, and how far off a right answer in f32 may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.codegen.rowwise.expression import Expression, Input, Number
from dnnsep.codegen.rowwise.operators import OPERATORS, REDUCTIONS, Inexact
from dnnsep.dtypes import F32

Operands = Sequence[NDArray[np.floating]]


def naive(expression: Expression, operands: Operands, channels: int) -> Exact:
    """Returns an expression of operands: pixels as (N, P, C), image as (N, C), channels as (C,)
    and pixel as (N, P) for N images of P pixels. What it does not depend on has size 1."""
    values: list[Exact] = []
    for term in expression.terms:
        if isinstance(term, Input):
            values.append(_aligned(term, operands[term.number]))
        elif isinstance(term, Number):
            values.append(np.full((1, 1, 1), term.value))
        elif term.name in REDUCTIONS:
            (place,) = term.arguments
            rows = _rows(values[place], channels)
            values.append(REDUCTIONS[term.name].naive(rows, axis=-1, keepdims=True))
        else:
            arguments = [values[place] for place in term.arguments]
            values.append(OPERATORS[term.name].naive(*arguments))
    return values[-1]


def bounded(expression: Expression, operands: Sequence[Inexact], channels: int) -> Inexact:
    """Returns what ``naive`` does, with how far off the same in f32 arithmetic may be."""
    values: list[Inexact] = []
    for term in expression.terms:
        if isinstance(term, Input):
            operand = operands[term.number]
            values.append(Inexact(_aligned(term, operand.value), _aligned(term, operand.error)))
        elif isinstance(term, Number):
            exact = np.full((1, 1, 1), term.value)
            values.append(Inexact(exact, F32.roundoff * np.abs(exact)))
        elif term.name in REDUCTIONS:
            (place,) = term.arguments
            value, error = (
                _rows(part, channels) for part in (values[place].value, values[place].error)
            )
            reduction = REDUCTIONS[term.name]
            exact = reduction.naive(value, axis=-1, keepdims=True)
            values.append(Inexact(exact, reduction.error(exact, Inexact(value, error), -1)))
        else:
            operator, arguments = OPERATORS[term.name], [values[place] for place in term.arguments]
            exact = operator.naive(*(argument.value for argument in arguments))
            error = operator.error(exact, *arguments)
            values.append(Inexact(exact, np.broadcast_to(error, exact.shape)))
    return values[-1]


def _aligned(term: Input, operand: NDArray[np.floating]) -> Exact:
    """Returns an operand in float64 as three dimensions: images, pixels, channels."""
    exact = operand.astype(np.float64)
    if term.kind == "image":
        return exact[:, None, :]
    if term.kind == "channels":
        return exact[None, None, :]
    return exact[:, :, None] if term.kind == "pixel" else exact


def _rows(value: Exact, channels: int) -> Exact:
    """Returns a value with all the channels of a row: a sum of a constant counts them too."""
    return np.broadcast_to(value, (*value.shape[:-1], channels))
