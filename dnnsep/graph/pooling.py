"""Reads the arguments of torch's pooling operators. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dnnsep.codegen.windows.pooling import Pooling
from dnnsep.graph.rewrite import arguments, shape_of
from dnnsep.problem import Pair

aten = torch.ops.aten


def pooling_of(node: fx.Node) -> tuple[fx.Node, Pooling] | None:
    """Returns the images (N, C, H, W) that a node pools, and how; None where it does something
    else."""
    known = (aten.max_pool2d.default, aten.avg_pool2d.default)
    if node.target not in known or len(shape_of(node)) != 4:
        return None
    given = arguments(node)
    if given.get("divisor_override") is not None:
        return None
    largest = node.target is aten.max_pool2d.default
    pooling = Pooling(
        "max" if largest else "mean",
        _pair(given["kernel_size"]),
        _pair(given["stride"] or given["kernel_size"]),
        _pair(given["padding"]),
        _pair(given["dilation"]) if largest else (1, 1),
        bool(given["ceil_mode"]),
        bool(given.get("count_include_pad")),
    )
    return given["self"], pooling


def _pair(value: Any) -> Pair:
    """Returns an argument that is a number, or a list of one or two, as a pair."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return values[0], values[-1]
