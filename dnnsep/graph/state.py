"""Notices whether a module's parameters and parts are still those that it was prepared with.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, is_
from sys import intern
from typing import Any

from torch import Tensor, nn

from dnnsep.graph.watch import Watch
from dnnsep.nn.samples import Samples

_VERSION = attrgetter("_version")


@dataclass(frozen=True)
class State:
    """The parameters, buffers and parts of a module at one time, and of the tensors where their
    elements are, how often they were written to, and one element; and how many parts and hooks
    there are.

    ``everything`` watches all of that, ``modes`` which parts are in training mode; ``evaluating``
    says that none was, and ``attributes`` are those of each part.
    """

    everything: Watch | SlowWatch
    modes: Watch | SlowWatch
    evaluating: bool
    attributes: list[dict[str, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> State:
        """Returns a module's state as it is now."""
        children = list(module.modules())
        entries = [
            (owner, name)
            for child in children
            for owner in (child._parameters, child._buffers, child._modules)
            for name in owner
        ]
        sized: list[Mapping[Any, Any]] = [
            owner
            for child in children
            for owner in (child._modules, child._forward_hooks, child._forward_pre_hooks)
        ]
        values = [owner[name] for owner, name in entries]
        tensors = [value for value in values if isinstance(value, Tensor)]
        attributes = [child.__dict__ for child in children]
        modes = _watch([(of_child, intern("training")) for of_child in attributes])
        evaluating = not any([child.training for child in children])
        return cls(_watch(entries, sized, tensors), modes, evaluating, attributes)

    def holds(self) -> bool:
        """Returns whether nothing has changed since. Writes that torch does not count, such as
        those through ``.data``, are noticed by one element of each tensor alone."""
        return self.everything.holds()

    def any_training(self) -> bool:
        """Returns whether the module or a part of it is in training mode."""
        if self.evaluating and self.modes.holds():
            return False
        return any([of_child["training"] for of_child in self.attributes])


class SlowWatch:
    """What a Watch watches, by Python alone."""

    def __init__(
        self,
        entries: Sequence[tuple[Mapping[str, Any], str]],
        sized: Sequence[Mapping[Any, Any]] = (),
        tensors: Sequence[Tensor] = (),
    ) -> None:
        self._entries, self._sized, self._tensors = entries, sized, tensors
        self._values = [owner[name] for owner, name in entries]
        self._seen, self._samples = self._look(), Samples(tensors)

    def holds(self) -> bool:
        """Returns whether all is as it was when this was made."""
        now = [owner.get(name) for owner, name in self._entries]
        same = all(map(is_, now, self._values)) and self._look() == self._seen
        return same and self._samples.hold()

    def _look(self) -> tuple[int, int, list[int]]:
        sizes = sum(map(len, self._sized))
        return sizes, _versions(self._tensors), [*map(Tensor.data_ptr, self._tensors)]


def _watch(
    entries: Sequence[tuple[Mapping[str, Any], str]],
    sized: Sequence[Mapping[Any, Any]] = (),
    tensors: Sequence[Tensor] = (),
) -> Watch | SlowWatch:
    try:
        return Watch(entries, sized, tensors)
    except (ValueError, AttributeError):
        return SlowWatch(entries, sized, tensors)


def _versions(tensors: Sequence[Tensor]) -> int:
    try:
        return sum(map(_VERSION, tensors))
    except RuntimeError:  # tensors made in inference mode count no versions
        return sum(tensor._version for tensor in tensors if not tensor.is_inference())
