"""Reads the arguments of torch's pooling operators, and finds bytes that are pooled.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dnnsep.codegen.windows.pooling import Pooling
from dnnsep.graph.quantized import dequantized, quantized
from dnnsep.graph.rewrite import arguments, only_user, shape_of
from dnnsep.problem import Pair

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class PoolGroup:
    """Nodes that make f32 of bytes ``x``, pool that and make the same kind of bytes of it: as much
    as pooling the bytes, where each result is one of the numbers that it is of."""

    nodes: list[fx.Node]
    x: fx.Node
    pooling: Pooling

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes whose values it reads."""
        return [self.x]

    @property
    def result(self) -> fx.Node:
        return self.nodes[-1]


def pool_groups(nodes: Sequence[fx.Node], taken: Collection[fx.Node]) -> list[PoolGroup]:
    """Returns the poolings of bytes among nodes that nothing else computes."""
    found = []
    for node in nodes:
        of = pooling_of(node)
        follower = only_user(node)
        if of is None or follower is None or of[1].kind != "max":
            continue
        source, target = dequantized(of[0]), quantized(follower)
        if source is None or target is None or only_user(of[0]) is None:
            continue
        alike = (source.dtype, source.affine) == (target.dtype, target.affine)
        group = PoolGroup([of[0], node, follower], source.node, of[1])
        if alike and not any(node in taken for node in group.nodes):
            found.append(group)
    return found


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
