"""What decides an attention kernel's code, its naive result, and how far off a right one may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.codegen.lang.dtype import ELEMENTS
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.rowwise.operators import TINY
from dnnsep.codegen.stages.base import gamma
from dnnsep.dtypes import DTYPES, F32

# A kernel adds up to so many biases.
MOST_BIASES = 2

# The roundings, relative, of an emitted exponential and of what is around it.
_EXP_ROUNDOFFS = 8

Values = NDArray[np.floating]


@dataclass(frozen=True)
class Heads:
    """Attention of heads whose queries and keys have ``depth`` channels and whose values have
    ``value_depth``, with so many ``biases`` added to the scores.

    A tensor lies in memory as (batch, head, token, channel) with the channels of a token one after
    the other, or where it is *transposed* as (batch, head, channel, token) with the tokens of a
    channel one after the other. Biases are (batch, head, query, key), keys one after the other.
    All are of one dtype; what is between is f32.
    """

    depth: int
    value_depth: int
    dtype: str
    isa: Isa
    biases: int = 0
    q_transposed: bool = False
    k_transposed: bool = False
    v_transposed: bool = False
    y_transposed: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what no kernel can be."""
        if min(self.depth, self.value_depth) < 1:
            raise ValueError(f"depths {self.depth}, {self.value_depth}: must be at least 1")
        if self.dtype not in ELEMENTS:
            raise ValueError(f"dtype {self.dtype!r}: must be one of {', '.join(ELEMENTS)}")
        if not 0 <= self.biases <= MOST_BIASES:
            raise ValueError(f"biases {self.biases}: must be 0 to {MOST_BIASES}")

    def naive(
        self, q: Values, k: Values, v: Values, scale: float, biases: Sequence[Values] = ()
    ) -> Exact:
        """Returns the result in float64, (B, H, Nq, Dv), of q (B, H, Nq, D), k (B, H, Nk, D) and
        v (B, H, Nk, Dv), whatever is transposed in memory, and of biases that broadcast to
        (B, H, Nq, Nk). A row whose scores are all minus infinity is NaN."""
        weights, _ = _weights(_scores(q, k, scale, biases))
        with np.errstate(invalid="ignore"):
            mean: Exact = weights @ v.astype(np.float64) / weights.sum(-1, keepdims=True)
        return mean

    def bound(
        self, q: Values, k: Values, v: Values, scale: float, biases: Sequence[Values] = ()
    ) -> Exact:
        """Returns how far from the naive result a right one may be, which was rounded to the dtype;
        NaN where that is NaN."""
        scores = _scores(q, k, scale, biases)
        weights, below = _weights(scores)
        there = weights > 0
        sizes = _scores(np.abs(q), np.abs(k), abs(scale), [np.abs(bias) for bias in biases])
        with np.errstate(invalid="ignore"):
            error = gamma(self.depth + 8, F32.roundoff) * (sizes + below) + TINY
            # A weight's exponent may be so far off; the largest score cancels in the quotient.
            relative = np.expm1(np.where(there, error, 0.0)) + gamma(_EXP_ROUNDOFFS, F32.roundoff)
        relative += gamma(k.shape[2] + 8, F32.roundoff) * (1 + relative)
        # The largest weight is 1, and those that are less than any normal number may be lost.
        absolute = weights * relative + TINY
        values = np.abs(v.astype(np.float64))
        total = weights.sum(-1, keepdims=True)
        lost = absolute.sum(-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            size = weights @ values / total
            wrong = np.where(
                lost < total, (absolute @ values + size * lost) / (total - lost), np.inf
            )
        stored: Exact = wrong + (DTYPES[self.dtype].roundoff + 2 * F32.roundoff) * (size + wrong)
        return np.where(np.isnan(total), np.nan, stored + TINY)


def _scores(q: Values, k: Values, scale: float, biases: Sequence[Values]) -> Exact:
    scores: Exact = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) * scale
    for bias in biases:
        scores = scores + bias.astype(np.float64)
    return scores


def _weights(scores: Exact) -> tuple[Exact, Exact]:
    """Returns the exponentials of what is left of scores after the largest of each row was
    subtracted, and how far below it each one is, 0 for one of minus infinity."""
    with np.errstate(invalid="ignore"):
        rest = scores - scores.max(-1, keepdims=True)
        return np.exp(rest), np.where(np.isfinite(rest), -rest, 0.0)
