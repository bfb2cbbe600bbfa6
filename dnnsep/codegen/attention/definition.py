"""What attention computes, in float64, and how far from it a right result may be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.dtypes import DTYPES

_ROUNDOFF = 2.0**-24


def naive_attention(
    q: NDArray[np.floating],
    k: NDArray[np.floating],
    v: NDArray[np.floating],
    scale: float,
    mask: NDArray[np.floating] | None = None,
) -> Exact:
    """Returns (B, Nq, H, Dv) of q, (B, Nq, H, D), k, (B, Nk, H, D), v, (B, Nk, H, Dv), and a mask
    that is added to the scores, (B or 1, H or 1, Nq, Nk)."""
    weights = _weights(_scores(q, k, scale, mask))
    values: Exact = v.astype(np.float64)
    result: Exact = np.einsum("bhqk,bkhd->bqhd", weights, values)
    return result


def bound_of_attention(
    q: NDArray[np.floating],
    k: NDArray[np.floating],
    v: NDArray[np.floating],
    scale: float,
    dtype: str,
    mask: NDArray[np.floating] | None = None,
) -> Exact:
    """Returns how far from the naive result one may be that was computed in f32 and rounded to the
    dtype: scores are off by the rounding of their sums, weights by the factor that this makes in
    their exponentials, and the result by the rounding of the last sums."""
    depth, keys = q.shape[-1], k.shape[1]
    scores = _scores(q, k, scale, mask)
    size = _scores(np.abs(q), np.abs(k), abs(scale), None)
    if mask is not None:
        size = size + np.where(np.isfinite(mask), np.abs(mask), 0)
    error = (depth + 8) * _ROUNDOFF * size.max(-1, keepdims=True)
    factor = np.expm1(4 * error) + (2 * keys + 32) * _ROUNDOFF
    weights = _weights(scores) * (1 + factor) * factor
    off: Exact = np.einsum("bhqk,bkhd->bqhd", weights, np.abs(v.astype(np.float64)))
    roundoff = DTYPES[dtype].roundoff
    return off * (1 + roundoff) + roundoff * np.abs(naive_attention(q, k, v, scale, mask))


def _scores(
    q: NDArray[np.floating],
    k: NDArray[np.floating],
    scale: float,
    mask: NDArray[np.floating] | None,
) -> Exact:
    scores: Exact = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k.astype(np.float64))
    return scores * scale + (0.0 if mask is None else mask)


def _weights(scores: Exact) -> Exact:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights: Exact = powers / powers.sum(-1, keepdims=True)
    return weights
