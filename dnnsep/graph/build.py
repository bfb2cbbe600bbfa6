"""Builds a network: what its actions are, and where their values lie.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.windows.copystep import CopyStep
from dnnsep.graph import layout
from dnnsep.graph.network import Action, Buffer, Call, Native, Value
from dnnsep.graph.predict import copied, predicted
from dnnsep.graph.rewrite import shape_of
from dnnsep.graph.slots import Slot

Packings = dict[Any, NDArray[np.uint8]]
Packer = Callable[[Packing], NDArray[np.uint8]]


@dataclass
class Settings:
    """How a graph is lowered: for so many threads; whether plans may be measured; packed weights
    that are there already; and of a node why it has to stay with torch, empty if it has not.

    With a backend other than "auto" and "fused" separable layers run on that one, and all else by
    torch. Without ``cascades`` all layers run one after the other.
    """

    threads: int
    backend: str = "fused"
    tune: bool = True
    packings: Packings = field(default_factory=dict)
    why_not: Callable[[fx.Node], str] = lambda node: ""
    cascades: bool = True

    @property
    def native(self) -> bool:
        """Whether generated kernels run what they can."""
        return self.backend in ("auto", "fused") and _has_kernels()


def _has_kernels() -> bool:
    try:
        this_isa()
    except RuntimeError:
        return False
    return True


class Builder:
    """The actions of a network so far, and the values of the nodes that they compute.

    ``constants`` are tensors of constant nodes, ``keys`` their names, and ``slots`` the places of
    values in concatenations. ``packers`` lay out the weights of the layers among the actions.
    """

    def __init__(
        self,
        settings: Settings,
        constants: Mapping[fx.Node, Tensor],
        keys: Mapping[fx.Node, str],
        slots: Mapping[fx.Node, Slot],
    ) -> None:
        self.settings, self.constants, self.keys, self.slots = settings, constants, keys, slots
        self.actions: list[Action] = []
        self.packers: dict[Native, Packer] = {}
        self.values: dict[fx.Node, Any] = {
            node: constant_value(tensor) for node, tensor in constants.items()
        }

    def as_rows(self, node: fx.Node, channel_dim: int) -> Value:
        """Returns a node's value as rows of the channels of a dimension, copied if it does not lie
        so."""
        value: Value = self.values[node]
        if layout.rows_of(value.like, channel_dim) is not None:
            return value
        return self.copied_densely(value, channel_dim)

    def copied_densely(self, value: Value, channel_dim: int) -> Value:
        """Adds a copy of a value as dense rows of the channels of a dimension."""
        like = layout.dense(value.like.shape, channel_dim, value.like.dtype)
        return self.copied(value, Value(Buffer("arena"), like))

    def copied(self, source: Value, target: Value) -> Value:
        """Adds a copy of a value to another place, and returns that."""
        step = self._copy_step(source.like, target.like)
        if step is None:
            copy = Call("copy", torch.ops.aten.copy_.default, (target, source), {}, [None])
            self.actions.append(copy)
        else:
            self.actions.append(Native("copy", step, {"x": source, "y": target}))
        return target

    def _copy_step(self, source: Tensor, target: Tensor) -> CopyStep | None:
        if not self.settings.native or source.dtype != target.dtype:
            return None
        try:
            return CopyStep(
                tuple(target.shape),
                source.stride(),
                target.stride(),
                target.element_size(),
                this_isa(),
                self.settings.threads,
            )
        except ValueError:
            return None

    def copied_for_view(self, node: fx.Node, value: Value) -> Value:
        """Adds a copy of a value that lies so that a reshape of it is a view, and returns that
        view."""
        after = copied(node, value.like)
        for like in (after, layout.dense(after.shape, -1, after.dtype)):
            try:
                before = like.view(value.like.shape)
            except RuntimeError:
                continue
            return self.copied(value, Value(Buffer("arena"), before)).seen(like)
        raise AssertionError(node.format_node())

    def result(self, node: fx.Node, base: Tensor, in_slot: bool = True) -> Value:
        """Returns where a kernel writes the value of a node, which else lies like ``base``: in its
        slot of a concatenation, if rows can be written there."""
        if in_slot and node in self.slots:
            value = self._slot(node)
            if layout.rows_of(value.like, layout.minor_dim(base)) is not None:
                return value
        return Value(Buffer("arena"), base)

    def whole(self, node: fx.Node) -> Value:
        """Returns the place of a concatenation."""
        if node not in self.values:
            inside = node in self.slots
            self.values[node] = (
                self._slot(node) if inside else Value(Buffer("arena"), predicted(node))
            )
        found: Value = self.values[node]
        return found

    def _slot(self, node: fx.Node) -> Value:
        """Returns the place of a value in the concatenation that it has a slot in."""
        slot = self.slots[node]
        whole = self.whole(slot.whole)
        length = shape_of(node)[slot.dim]
        return whole.seen(whole.like.narrow(slot.dim, slot.start, length))

    def concatenate(self, node: fx.Node, parts: Sequence[fx.Node], dim: int) -> None:
        """Adds copies of the parts of a concatenation that were not written into it."""
        whole = self.whole(node)
        around = {node, self.slots[node].whole} if node in self.slots else {node}
        start = 0
        for part in parts:
            length = shape_of(part)[dim]
            place = whole.seen(whole.like.narrow(dim, start, length))
            value: Value = self.values[part]
            start += length
            if value.buffer is place.buffer and _same(value.like, place.like):
                continue
            copy = self.copied(value, place)
            if part in self.slots and self.slots[part].whole in around:
                self.values[part] = copy  # for the concatenations around this one


def constant_value(tensor: Any) -> Any:
    """Returns a constant as a value; what is no tensor as it is."""
    if not isinstance(tensor, Tensor):
        return tensor
    return Value(Buffer("constant", tensor=tensor), place_of(tensor))


def place_of(x: Tensor) -> Tensor:
    """Returns where a tensor's elements lie, from its first one on."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.stride(), one.storage_offset()) == (other.stride(), other.storage_offset())
