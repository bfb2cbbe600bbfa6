"""How far two models' results are apart. Imports torch: import it from inside functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def difference(found: Any, expected: Any) -> float:
    """The largest difference between two results, relative to the largest value of each tensor."""
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    worst = 0.0
    for a, b in pairs:
        if not isinstance(b, Tensor) or not b.is_floating_point():
            worst = worst if _same(a, b) else float("inf")
            continue
        if a.shape != b.shape:
            return float("inf")
        apart = (a.double() - b.double()).abs()
        apart[(a == b) | (a.isnan() & b.isnan())] = 0.0  # infinities too
        if apart.numel():
            scale = float(b.abs().max())
            error = float(apart.max()) / (scale if 0 < scale < float("inf") else 1.0)
            worst = max(worst, float("inf") if error != error else error)
    return worst


def _same(a: Any, b: Any) -> bool:
    return bool(torch.equal(a, b)) if isinstance(b, Tensor) else bool(a == b)
