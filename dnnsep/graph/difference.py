"""Measures how far two models' results are apart.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def difference(actual: Any, expected: Any) -> float:
    """Returns the largest difference between two results, which are trees of tensors.

    It is relative to the largest value of each expected tensor. It is infinite where shapes differ,
    or values that are not floating-point. Raises ValueError where one result has more values.
    """
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    worst = 0.0
    for ours, theirs in pairs:
        if not isinstance(theirs, Tensor) or not theirs.is_floating_point():
            worst = worst if _equal(ours, theirs) else float("inf")
            continue
        if ours.shape != theirs.shape:
            return float("inf")
        apart = (ours.double() - theirs.double()).abs()
        # The difference of equal infinities is nan, too.
        apart[(ours == theirs) | (ours.isnan() & theirs.isnan())] = 0.0
        if apart.numel():
            scale = float(theirs.abs().max())
            error = float(apart.max()) / (scale if 0 < scale < float("inf") else 1.0)
            worst = max(worst, float("inf") if error != error else error)
    return worst


def _equal(ours: Any, theirs: Any) -> bool:
    return bool(torch.equal(ours, theirs)) if isinstance(theirs, Tensor) else bool(ours == theirs)
