"""Notices whether a module's parameters and parts are still those that it was prepared with.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

_VERSION = attrgetter("_version")


@dataclass(frozen=True)
class State:
    """The parameters, buffers and parts of a module at one time, and of the tensors where their
    elements are, and how often they were written to; and how many parts and hooks there are."""

    places: list[tuple[Mapping[str, Any], str]]
    there: list[Any]
    counted: list[Mapping[Any, Any]]
    count: int
    tensors: list[Tensor]
    addresses: list[int]
    versions: int
    attributes: list[dict[str, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> State:
        """Returns a module's state as it is now."""
        children = list(module.modules())
        places: list[tuple[Mapping[str, Any], str]] = [
            (owner, name)
            for child in children
            for owner in (child._parameters, child._buffers, child._modules)
            for name in owner
        ]
        there = [owner[name] for owner, name in places]
        counted: list[Mapping[Any, Any]] = [
            of_child
            for child in children
            for of_child in (child._modules, child._forward_hooks, child._forward_pre_hooks)
        ]
        tensors = [value for value in there if isinstance(value, Tensor)]
        addresses = [*map(Tensor.data_ptr, tensors)]
        attributes = [child.__dict__ for child in children]
        count = sum(map(len, counted))
        return cls(
            places, there, counted, count, tensors, addresses, _versions(tensors), attributes
        )

    def holds(self) -> bool:
        """Returns whether nothing has changed since.

        Writing through ``.data`` or NumPy into the same memory is what torch does not count.
        """
        # Every call of a model does this for hundreds of tensors: it is written for speed.
        now = [owner.get(name) for owner, name in self.places]
        return (
            all(map(is_, now, self.there))
            and sum(map(len, self.counted)) == self.count
            and _versions(self.tensors) == self.versions
            and [*map(Tensor.data_ptr, self.tensors)] == self.addresses
        )

    def any_training(self) -> bool:
        """Returns whether the module or a part of it is in training mode."""
        return any([of_child["training"] for of_child in self.attributes])


def _versions(tensors: list[Tensor]) -> int:
    try:
        return sum(map(_VERSION, tensors))
    except RuntimeError:  # tensors made in inference mode count no versions
        return sum(tensor._version for tensor in tensors if not tensor.is_inference())
