"""How far a quantised model as it runs is from what it was made of, over many inputs.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnnsep.graph.sqnr import Sqnr, tensors_of


@dataclass
class Agreement:
    """Of two models on the same inputs: of how many scores along axis 1 of the first output the
    largest is the same one, and the signal-to-noise ratio of all outputs in dB."""

    equal: int = 0
    total: int = 0
    sqnr: float = 0.0

    @property
    def share(self) -> float:
        """Returns the share of equal ones, 0 to 1."""
        return self.equal / self.total if self.total else 1.0

    def __str__(self) -> str:
        return f"top-1 equal on {self.equal} of {self.total} ({self.share:.1%}), {self.sqnr:.1f} dB"


def agreements(
    models: Sequence[Callable[[Tensor], Any]],
    pairs: Sequence[tuple[int, int]],
    inputs: Iterable[Tensor],
) -> list[Agreement]:
    """Returns that of each pair of models, which are named by their numbers, the right one first.

    Raises ValueError where a first output has no axis 1.
    """
    results, ratios = [Agreement() for _ in pairs], [Sqnr() for _ in pairs]
    with torch.no_grad():
        for x in inputs:
            outputs = [tensors_of(model(x)) for model in models]
            for (right, found), result, ratio in zip(pairs, results, ratios, strict=True):
                _count(result, outputs[right][0], outputs[found][0])
                for one, other in zip(outputs[right], outputs[found], strict=True):
                    ratio.add(one, other)
    for result, ratio in zip(results, ratios, strict=True):
        result.sqnr = ratio.db
    return results


def _count(result: Agreement, right: Tensor, found: Tensor) -> None:
    if right.dim() < 2:
        raise ValueError(f"the output is {list(right.shape)}: scores are along axis 1")
    equal = right.argmax(1) == found.argmax(1)
    result.equal += int(equal.sum())
    result.total += equal.numel()
