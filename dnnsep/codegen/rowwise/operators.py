"""The operators of expressions: in float64, how wrong f32 may be, and as they are emitted.

One table for all that asks about them. Kernels compute in f32 whatever a tensor's dtype is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.activations import ACTIVATIONS, Activation, Exact
from dnnsep.codegen.lang import activate
from dnnsep.codegen.lang.emit import Code
from dnnsep.codegen.stages.base import gamma
from dnnsep.dtypes import F32

_ROUNDOFF = F32.roundoff
# The least positive normal number: what arithmetic may lose where results are less.
TINY = 2.0**-125
# The errors of emitted exp and tanh, relative, in roundoffs.
_EXP_ROUNDOFFS, _TANH_ROUNDOFFS = 4, 8


# What emits two vectors combined.
Combine = Callable[[Code, ir.Value, ir.Value], ir.Value]


@dataclass(frozen=True, eq=False)
class Inexact:
    """What a value is in exact arithmetic, and how far from that a right one in f32 may be."""

    value: Exact
    error: Exact

    @classmethod
    def of(cls, given: NDArray[np.floating]) -> Inexact:
        """Returns what is given as it is."""
        return cls(given.astype(np.float64), np.zeros(given.shape))


@dataclass(frozen=True)
class Operator:
    """A function of one or two numbers, elementwise.

    ``error`` returns how far off a result may be, of the exact result and the operands. A
    ``costly`` one takes longer than to write its result and to read it again from the L1 cache.
    """

    naive: Callable[..., Exact]
    error: Callable[..., Exact]
    emit: Callable[..., ir.Value]
    arity: int = 1
    costly: bool = False


@dataclass(frozen=True)
class Reduction:
    """A function of a row's channels to one number. ``neutral`` combined with a number is that;
    ``divides`` says whether what came out is divided by how many numbers there were.
    ``of_numbers`` is a faster ``combine`` for values none of which is NaN, if there is one, and
    ``of_product`` emits one of a total with a product, of two vectors."""

    naive: Callable[..., Exact]
    error: Callable[[Exact, Inexact, int | tuple[int, ...]], Exact]
    combine: Combine
    neutral: float
    divides: bool = False
    of_numbers: Combine | None = None
    of_product: Callable[[Code, ir.Value, ir.Value, ir.Value], ir.Value] | None = None


def _rounding(result: Exact) -> Exact:
    rounding: Exact = _ROUNDOFF * np.abs(result)
    return rounding


def _sum_error(result: Exact, a: Inexact, b: Inexact) -> Exact:
    error = a.error + b.error
    return error + _ROUNDOFF * (np.abs(result) + error)


def _product_error(result: Exact, a: Inexact, b: Inexact) -> Exact:
    error = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
    return error + _ROUNDOFF * (np.abs(result) + error) + TINY


def _quotient_error(result: Exact, a: Inexact, b: Inexact) -> Exact:
    least = np.abs(b.value) - b.error
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(least > 0, (a.error + np.abs(result) * b.error) / least, np.inf)
    return error + _ROUNDOFF * (np.abs(result) + error) + TINY


def _larger_error(result: Exact, a: Inexact, b: Inexact) -> Exact:
    larger: Exact = np.maximum(a.error, b.error)
    return larger


def _root_error(result: Exact, a: Inexact) -> Exact:
    """The root is steepest at 0: that of a value off by e is off by the root of e at most."""
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.fmin(a.error / result, np.sqrt(a.error))
    return error + _ROUNDOFF * (result + error)


def _reciprocal_root_error(result: Exact, a: Inexact) -> Exact:
    least = a.value - a.error
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(least > 0, 1 / np.sqrt(least) - result, np.inf)
    return error + 3 * _ROUNDOFF * (result + error)


def _square_error(result: Exact, a: Inexact) -> Exact:
    return _product_error(result, a, a)


def _exp_error(result: Exact, a: Inexact) -> Exact:
    with np.errstate(over="ignore", invalid="ignore"):
        error = result * np.expm1(a.error)
    return error + _EXP_ROUNDOFFS * _ROUNDOFF * (result + error) + TINY


def _tanh_error(result: Exact, a: Inexact) -> Exact:
    return a.error + _TANH_ROUNDOFFS * _ROUNDOFF * (np.abs(result) + a.error) + TINY


def _activation_error(activation: Activation, result: Exact, a: Inexact) -> Exact:
    error = a.error * activation.lipschitz
    error += activation.approximation * _ROUNDOFF * (1 + np.abs(a.value) + a.error)
    if not activation.keeps_integers:
        error += 2 * _rounding(result)
    return error


def _reciprocal_root(code: Code, x: ir.Value) -> ir.Value:
    root = code.intrinsic("llvm.sqrt", x)
    return code.builder.fdiv(code.splat(1.0, x.type), root)


def _extreme_of_numbers(comparison: str) -> Combine:
    """Returns what emits the larger (">") or the smaller ("<") of two values, the first one where
    either is NaN."""

    def emit(code: Code, x: ir.Value, y: ir.Value) -> ir.Value:
        return code.builder.select(code.builder.fcmp_ordered(comparison, y, x), y, x)

    return emit


def _extreme(comparison: str) -> Combine:
    """Returns what emits the larger (">") or the smaller ("<") of two values, NaN where one is."""
    of_numbers = _extreme_of_numbers(comparison)

    def emit(code: Code, x: ir.Value, y: ir.Value) -> ir.Value:
        # Of a chain of maxima x is the one before: whether y is NaN does not wait for it.
        nan = code.builder.fcmp_unordered("uno", y, y)
        return code.builder.select(nan, y, of_numbers(code, x, y))

    return emit


def _add(code: Code, x: ir.Value, y: ir.Value) -> ir.Value:
    return code.builder.fadd(x, y)


def _add_product(code: Code, total: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    return code.fma(x, y, total)


def _reciprocal_root_naive(x: Exact) -> Exact:
    value: Exact = 1 / np.sqrt(x)
    return value


OPERATORS: dict[str, Operator] = {
    "add": Operator(np.add, _sum_error, _add, 2),
    "sub": Operator(np.subtract, _sum_error, lambda code, x, y: code.builder.fsub(x, y), 2),
    "mul": Operator(np.multiply, _product_error, lambda code, x, y: code.builder.fmul(x, y), 2),
    "div": Operator(
        np.divide, _quotient_error, lambda code, x, y: code.builder.fdiv(x, y), 2, costly=True
    ),
    "maximum": Operator(np.maximum, _larger_error, _extreme(">"), 2),
    "minimum": Operator(np.minimum, _larger_error, _extreme("<"), 2),
    "neg": Operator(np.negative, lambda _, a: a.error, lambda code, x: code.builder.fneg(x)),
    "sqrt": Operator(
        np.sqrt, _root_error, lambda code, x: code.intrinsic("llvm.sqrt", x), costly=True
    ),
    "rsqrt": Operator(
        _reciprocal_root_naive, _reciprocal_root_error, _reciprocal_root, costly=True
    ),
    "square": Operator(np.square, _square_error, lambda code, x: code.builder.fmul(x, x)),
    "exp": Operator(np.exp, _exp_error, activate.exp, costly=True),
    "tanh": Operator(np.tanh, _tanh_error, activate.tanh, costly=True),
    **{
        name: Operator(
            activation.naive,
            partial(_activation_error, activation),
            lambda code, x, name=name: activate.activate(code, name, x),
            costly=name in activate.LONG,
        )
        for name, activation in ACTIVATIONS.items()
    },
}


def _total_error(result: Exact, a: Inexact, axis: int | tuple[int, ...]) -> Exact:
    terms = a.value.size // max(1, result.size)
    size = (np.abs(a.value) + a.error).sum(axis, keepdims=True)
    error: Exact = a.error.sum(axis, keepdims=True) + gamma(terms, _ROUNDOFF) * size
    return error


def _mean_error(result: Exact, a: Inexact, axis: int | tuple[int, ...]) -> Exact:
    terms = a.value.size // max(1, result.size)
    error = _total_error(result, a, axis) / terms
    return error + _ROUNDOFF * (np.abs(result) + error) + TINY


def _most_error(result: Exact, a: Inexact, axis: int | tuple[int, ...]) -> Exact:
    error: Exact = a.error.max(axis, keepdims=True)
    return error


REDUCTIONS: dict[str, Reduction] = {
    # Adding -0 changes nothing, and LLVM knows; adding 0 makes 0 of -0.
    "sum": Reduction(np.sum, _total_error, _add, -0.0, of_product=_add_product),
    "mean": Reduction(np.mean, _mean_error, _add, -0.0, divides=True, of_product=_add_product),
    "max": Reduction(
        np.max,
        _most_error,
        _extreme(">"),
        float("-inf"),
        of_numbers=_extreme_of_numbers(">"),
    ),
}
