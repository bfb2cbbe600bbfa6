"""What decides a kernel's code: an expression of each row, or a reduction of an image's pixels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.rowwise.expression import Expression, Input, pixels
from dnnsep.codegen.rowwise.naive import bounded, naive
from dnnsep.codegen.rowwise.operators import REDUCTIONS, TINY, Inexact
from dnnsep.codegen.rowwise.schedule import schedule
from dnnsep.dtypes import DTYPES, TENSOR_DTYPES

# Rows of so many vectors are written out, and what is computed of them stays in registers. Longer
# ones are loops.
UNROLLED = 12

# Rows without reductions are taken several at a time as one where that makes whole vectors of rows
# shorter than the first number of vectors, and where they are shorter than the second one.
_SHORT, _LEAST = 8, 4

# As many as the lanes in which what is the same for all channels of a row is computed.
_SIDE_BY_SIDE = 4

# Between the scratch memory of two parts, in f32.
_GAP = 16 * 1024


@dataclass(frozen=True)
class Rowwise:
    """An expression of each row of so many channels.

    ``dtype`` is that of the result and of all operands that have none of their own; what is between
    is f32. Bytes are numbers from 0 to 255, which a result has to be within; s8 are those less 128.
    """

    expression: Expression
    channels: int
    dtype: str
    isa: Isa

    def __post_init__(self) -> None:
        """Raises ValueError for what no kernel can be."""
        _check(self.channels, self.dtype, TENSOR_DTYPES)
        _ = self.inputs

    def naive(self, operands: Sequence[NDArray[np.floating]]) -> Exact:
        """Returns the result in float64, (N, P, C), of operands: pixels as (N, P, C), image as
        (N, C), channels as (C,) and pixel as (N, P), for N images of P pixels. What it does not
        depend on has size 1."""
        value = naive(self.expression, operands, self.channels)
        return np.broadcast_to(value, (*value.shape[:-1], self.channels))

    def bound(self, operands: Sequence[NDArray[np.floating]]) -> Exact:
        """Returns how far from the naive result a right one may be, which was rounded to the dtype:
        infinite where a small error of an operand of some division may be any of the quotient."""
        result = bounded(self.expression, [*map(Inexact.of, operands)], self.channels)
        error = _stored_error(result, self.dtype)
        return np.broadcast_to(error, (*error.shape[:-1], self.channels))

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The operands in order."""
        return self.expression.inputs

    def dtype_of(self, operand: Input) -> str:
        """Returns the dtype of an operand."""
        return operand.dtype or self.dtype

    @property
    def together(self) -> int:
        """How many rows are computed as one, where they lie one after the other in memory."""
        if self.expression.reduces:
            return 1
        lanes, channels = self.isa.lanes, self.channels
        rows = lanes // gcd(lanes, channels) if channels < _SHORT * lanes else 1
        while rows * channels < _LEAST * lanes:
            rows *= 2
        per_pixel = any(operand.kind == "pixel" for operand in self.inputs)
        # Which lanes of a vector belong to which pixel is written into the code of each one.
        return 1 if per_pixel and rows * channels > UNROLLED * lanes else rows

    @property
    def side_by_side(self) -> int:
        """How many rows with reductions are computed side by side. More than registers hold are
        faster too, since a single row waits for each of its sums."""
        short = self.channels <= UNROLLED * self.isa.lanes
        return _SIDE_BY_SIDE if self.expression.reduces and short else 1

    @property
    def repeated(self) -> tuple[Input, ...]:
        """The operands that are laid out in scratch memory, in f32, as often as rows are computed
        as one."""
        if self.together == 1:
            return ()
        return tuple(operand for operand in self.inputs if operand.kind in ("channels", "image"))

    @property
    def repeated_floats(self) -> int:
        """The f32 that one of them takes: the last vector that is written may reach beyond it."""
        lanes = self.isa.lanes
        return -(-(self.together * self.channels + lanes) // lanes) * lanes

    @property
    def kept_floats(self) -> int:
        """The f32 of scratch memory that one term takes that is kept from pass to pass."""
        return -(-self.channels // self.isa.lanes) * self.isa.lanes

    @property
    def scratch_floats(self) -> int:
        """The f32 of scratch memory that a part takes, with a gap up to the next part's: what the
        hardware fetches ahead of one thread must not be the other's."""
        kept = len(schedule(self.expression).kept) * self.kept_floats
        used = kept + len(self.repeated) * self.repeated_floats
        return used + _GAP if used else 0


_X = pixels(0)


@dataclass(frozen=True)
class PixelReduction:
    """``after`` of a reduction (of REDUCTIONS) over all pixels of an image of ``before`` of them.

    Both are expressions without reductions of the one operand ``pixels(0)``: of the input, and of
    what the reduction gives.
    """

    before: Expression
    reduction: str
    channels: int
    dtype: str
    isa: Isa
    after: Expression = _X

    def __post_init__(self) -> None:
        """Raises ValueError for what no kernel can be."""
        _check(self.channels, self.dtype, DTYPES)
        if self.reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction {self.reduction!r}: must be one of {', '.join(REDUCTIONS)}"
            )
        for expression in (self.before, self.after):
            if expression.reduces or expression.inputs != _X.inputs:
                raise ValueError(f"{expression}: must be of pixels(0) alone, without reductions")

    def naive(self, x: NDArray[np.floating]) -> Exact:
        """Returns the result in float64, (N, C), of x, (N, P, C)."""
        terms = naive(self.before, [x], self.channels)
        total = REDUCTIONS[self.reduction].naive(terms, axis=1, keepdims=True)
        return naive(self.after, [total], self.channels)[:, 0]

    def bound(self, x: NDArray[np.floating]) -> Exact:
        """Returns how far from the naive result a right one may be, (N, C), which was rounded to
        the dtype."""
        reduction = REDUCTIONS[self.reduction]
        terms = bounded(self.before, [Inexact.of(x)], self.channels)
        total = reduction.naive(terms.value, axis=1, keepdims=True)
        error = reduction.error(total, terms, 1)
        result = bounded(self.after, [Inexact(total, error)], self.channels)
        return _stored_error(result, self.dtype)[:, 0]


def _check(channels: int, dtype: str, known: Collection[str]) -> None:
    if channels < 1:
        raise ValueError(f"channels {channels}: must be at least 1")
    if dtype not in known:
        raise ValueError(f"dtype {dtype!r}: must be one of {', '.join(known)}")


def _stored_error(result: Inexact, dtype: str) -> Exact:
    """Returns how far off a result may be that was rounded to a dtype; what is less than any normal
    number may have become zero."""
    if dtype not in DTYPES:
        return result.error + 0.5  # of whole numbers
    size = np.abs(result.value) + result.error
    error: Exact = result.error + DTYPES[dtype].roundoff * size + TINY
    return error
