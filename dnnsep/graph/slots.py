"""Where the parts of a concatenation are written: into it, as far as their kernels can.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from dnnsep.graph.groups import dtype_of, shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Slot:
    """A value's place in a concatenation: from an index on along a dimension."""

    whole: fx.Node
    dim: int
    start: int


def slots(nodes: Iterable[fx.Node], constants: Collection[fx.Node]) -> dict[fx.Node, Slot]:
    """Returns the slots of the values that are concatenated.

    A value has one at most; the last concatenation that reads it has it. A concatenation whose
    parts have slots side by side in a later one has a slot there, too: it is a part of that.
    """
    found: dict[fx.Node, Slot] = {}
    for node in reversed(list(nodes)):
        if node.target is not aten.cat.default or node in constants:
            continue
        parts, dim = parts_of(node)
        if len(set(parts)) < len(parts) or any(dtype_of(p) != dtype_of(node) for p in parts):
            continue
        already = [found.get(part) for part in parts]
        if node not in found and all(slot is not None for slot in already):
            first = already[0]
            assert first is not None
            start = first.start
            whole = first.whole
            side_by_side = whole is not node
            for part, slot in zip(parts, already, strict=True):
                assert slot is not None
                side_by_side &= (slot.whole, slot.dim, slot.start) == (whole, dim, start)
                start += shape_of(part)[dim]
            if side_by_side:
                found[node] = Slot(whole, dim, first.start)
                continue
        start = 0
        for part in parts:
            if part not in found and part not in constants:
                found[part] = Slot(node, dim, start)
            start += shape_of(part)[dim]
    return found


def parts_of(node: fx.Node) -> tuple[list[fx.Node], int]:
    """Returns what a concatenation joins, and along which dimension."""
    parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    return parts, dim % len(shape_of(node))
