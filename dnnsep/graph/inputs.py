"""What the arguments and results of a model's call are made of.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def are_data(leaves: Sequence[Any]) -> bool:
    """Returns whether all tensors among some leaves hold numbers in a CPU's memory, rather than
    standing for some."""
    if torch._C._get_tracing_state() is not None:
        return False
    return all(
        type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.layout is torch.strided
        for x in leaves
        if isinstance(x, Tensor)
    )


def floating_dtype(leaves: Sequence[Any]) -> torch.dtype | None:
    """Returns the dtype of the first floating-point tensor among some leaves."""
    floating = (x for x in leaves if isinstance(x, Tensor) and x.is_floating_point())
    return next((x.dtype for x in floating), None)


def converted(values: Any, dtype: torch.dtype | None) -> Any:
    """Returns values, as they nest, with the floating-point tensors among them in a dtype; None
    means as they are."""

    def one(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    return values if dtype is None else pytree.tree_map(one, values)


def described(leaves: Sequence[Any]) -> str:
    """Returns what some leaves are, as a person reads it: ``(1, 3, 224, 224) float32, True``."""
    texts = [
        f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
        if isinstance(leaf, Tensor)
        else repr(leaf)
        for leaf in leaves
    ]
    return ", ".join(texts)
