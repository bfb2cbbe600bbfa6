"""Reads the arguments of torch's pooling operators. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dnnsep.graph.groups import shape_of
from dnnsep.problem import Pair

aten = torch.ops.aten


@dataclass(frozen=True)
class Pooling:
    """A pooling of images, as a kernel of dnnsep.codegen.windows.pool has it."""

    kind: str
    x: fx.Node
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    counts_padding: bool


def pooling_of(node: fx.Node) -> Pooling | None:
    """Returns what a node pools of images (N, C, H, W); None where it is something else."""
    known = (aten.max_pool2d.default, aten.avg_pool2d.default)
    if node.target not in known or len(shape_of(node)) != 4 or node.kwargs:
        return None
    x, kernel, *rest = node.args
    assert isinstance(x, fx.Node)
    stride = rest[0] if rest and rest[0] else kernel
    padding = rest[1] if len(rest) > 1 else 0
    if node.target is aten.max_pool2d.default:
        dilation = rest[2] if len(rest) > 2 else 1
        pairs = map(_pair, (kernel, stride, padding, dilation))
        return Pooling("max", x, *pairs, counts_padding=False)
    counts = bool(rest[3]) if len(rest) > 3 else True
    divisor = rest[4] if len(rest) > 4 else None
    if divisor is not None:
        return None
    return Pooling("mean", x, *map(_pair, (kernel, stride, padding, 1)), counts_padding=counts)


def _pair(value: Any) -> Pair:
    """Returns an argument that is a number, or a list of one or two, as a pair."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return values[0], values[-1]
