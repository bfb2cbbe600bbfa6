"""Measures how far two models' results are apart.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# How far outputs may differ from the original's, relative to the largest one: sums in another order
# and folded normalisations add up through some fifty layers.
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.1}

# Of a quantised model: where a number is between two steps, the last bit of a sum decides which one
# it becomes, and the layers after it go on from there.
QUANTIZED_BOUND = 0.1

_INFINITE = float("inf")


def difference(actual: Any, expected: Any, bound: float = 1e-3) -> float:
    """Returns the largest difference between two results, which are trees of tensors.

    A floating-point tensor's difference is relative to the largest value of the expected one.
    Everything else must be equal. The difference is infinite where something is not, where shapes
    differ, or where one result has more values.

    Detections, which are a dict of ``scores`` (N), ``labels`` (N) and maybe more tensors of N
    entries such as ``boxes`` (N, 4), are compared entry by entry. Entries whose scores differ by no
    more than ``bound`` of the largest score may have changed places, with all that belongs to them.
    One entry of each may have no partner in the other, if its score is as close to the other's
    lowest: rounding decides there what a threshold, or a limit of entries, lets through.
    """
    ours = pytree.tree_leaves(actual, is_leaf=_is_detections)
    theirs = pytree.tree_leaves(expected, is_leaf=_is_detections)
    if len(ours) != len(theirs):
        return _INFINITE
    return max((_apart(*pair, bound) for pair in zip(ours, theirs, strict=True)), default=0.0)


def _apart(ours: Any, theirs: Any, bound: float) -> float:
    """Returns the difference of two leaves."""
    if _is_detections(theirs):
        return _detections_apart(ours, theirs, bound) if _is_detections(ours) else _INFINITE
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor):
        return _tensors_apart(ours, theirs)
    same = type(ours) is type(theirs) and bool(ours == theirs)
    return 0.0 if same else _INFINITE


def _tensors_apart(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return _INFINITE
    if not theirs.is_floating_point():
        return 0.0 if bool((ours == theirs).all()) else _INFINITE
    apart = (ours.double() - theirs.double()).abs()
    # The difference of equal infinities is nan, too.
    apart[(ours == theirs) | (ours.isnan() & theirs.isnan())] = 0.0
    if not apart.numel():
        return 0.0
    scale = float(theirs.abs().max())
    error = float(apart.max()) / (scale if 0 < scale < _INFINITE else 1.0)
    return _INFINITE if error != error else error


def _is_detections(value: Any) -> bool:
    """Returns whether a value is a dict of scores, labels, and tensors with as many entries."""
    if not isinstance(value, Mapping) or not {"scores", "labels"} <= value.keys():
        return False
    if not all(isinstance(of, Tensor) and of.dim() for of in value.values()):
        return False
    scores, labels = value["scores"], value["labels"]
    return (
        scores.dim() == labels.dim() == 1
        and scores.is_floating_point()
        and not labels.is_floating_point()
        and len({len(of) for of in value.values()}) == 1
    )


def _detections_apart(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], bound: float
) -> float:
    if ours.keys() != theirs.keys():
        return _INFINITE
    close = bound * float(theirs["scores"].abs().max()) if len(theirs["scores"]) else 0.0
    common = min(len(of["scores"]) for of in (ours, theirs))
    in_place = (ours["scores"][:common].double() - theirs["scores"][:common].double()).abs()
    if not bool((in_place <= close).all()):
        return _INFINITE
    pairs = _pairs(ours, theirs, close)
    for index, (one, other) in enumerate(((ours, theirs), (theirs, ours))):
        single = set(range(len(one["scores"]))) - {pair[index] for pair in pairs}
        if len(single) > 1 or any(not _may_be_missing(one, i, other, close) for i in single):
            return _INFINITE
    of_ours, of_theirs = ([pair[index] for pair in pairs] for index in (0, 1))
    return max(_tensors_apart(ours[key][of_ours], theirs[key][of_theirs]) for key in theirs)


def _pairs(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], close: float
) -> list[tuple[int, int]]:
    """Returns the numbers of the entries that belong together, ours and theirs.

    From the highest score on, each of theirs takes the nearest of ours that is left, has the same
    label, and a score that is close.
    """
    apart = _distances(ours["scores"], theirs["scores"])
    possible = (apart <= close) & (ours["labels"][:, None] == theirs["labels"][None])
    if "boxes" in theirs:
        apart = apart + _distances(ours["boxes"], theirs["boxes"])
    distance = apart.masked_fill(~possible, _INFINITE)
    pairs = []
    for index in theirs["scores"].argsort(descending=True, stable=True).tolist():
        nearest = distance[:, index]
        if len(nearest) and float(nearest.min()) < _INFINITE:
            partner = int(nearest.argmin())
            pairs.append((partner, index))
            distance[partner] = _INFINITE
    return pairs


def _distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Returns how far each of our entries is from each of theirs in any value, as (N, M)."""
    first, second = (of.double().reshape(len(of), prod(of.shape[1:])) for of in (ours, theirs))
    return torch.cdist(first, second, p=_INFINITE)


def _may_be_missing(
    of: Mapping[str, Tensor], index: int, other: Mapping[str, Tensor], close: float
) -> bool:
    """Returns whether an entry's score is close to the lowest that the other result let through."""
    scores = other["scores"]
    return bool(len(scores)) and abs(float(of["scores"][index] - scores.min())) <= close
