"""What was made of a layer's tensors, kept for as long as they do not change.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

from torch import Tensor

from dnnsep.nn.samples import Samples

Tensors = tuple[Tensor | None, ...]
Made = TypeVar("Made")

_VERSION_AND_DTYPE = attrgetter("_version", "dtype")
_DTYPE = attrgetter("dtype")


def state_of(tensors: Tensors) -> tuple[Hashable, ...]:
    """Returns what differs when tensors were replaced or written to, as long as the earlier ones
    are kept.

    Writes into the same memory that torch itself does not count, such as those through ``.data``,
    make no difference.
    """
    # Mapped and not looped over: a model's call does this for a hundred tensors or more.
    there = [t for t in tensors if t is not None]
    places = (*map(Tensor.data_ptr, there), *map(Tensor.stride, there))
    try:
        return (*places, *map(_VERSION_AND_DTYPE, there))
    except RuntimeError:  # tensors made in inference mode count no versions
        return (*places, *map(_DTYPE, there))


@dataclass(frozen=True)
class _Entry(Generic[Made]):
    """What was made, of tensors in which state; they are kept, so that their addresses cannot
    become other tensors'. One element of each shows most of the writes that torch does not count.
    """

    state: tuple[Hashable, ...]
    held: Tensors
    samples: Samples
    made: Made

    def is_of(self, state: tuple[Hashable, ...]) -> bool:
        """Returns whether it was made of tensors in a state, and their elements are the same."""
        return self.state == state and self.samples.hold()


class Memo(Generic[Made]):
    """Things made of tensors, by a key such as an input's shape.

    Each is made when first asked for, and again after the tensors changed. The latest ``most`` keys
    stay; ``shared`` says whether those of other tensors stay too, or are of an earlier state and
    forgotten. May be asked from several threads at once. A copy, or what is unpickled, starts
    empty.
    """

    def __init__(self, most: int = 32, shared: bool = False) -> None:
        self._most, self._shared = most, shared
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry[Made]] = {}

    def get(self, key: Hashable, tensors: Tensors, make: Callable[[], Made]) -> Made:
        """Returns what ``make`` returned for the key and the tensors as they are now."""
        state = state_of(tensors)
        entry = self._entries.get(key)
        if entry is not None and entry.is_of(state):
            return entry.made
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.is_of(state):
                held = tuple(None if t is None else t.detach() for t in tensors)
                entry = _Entry(state, held, Samples(held), make())
                self._keep(key, entry)
            return entry.made

    def _keep(self, key: Hashable, entry: _Entry[Made]) -> None:
        kept = [
            (other, old)
            for other, old in self._entries.items()
            if other != key and (self._shared or old.state == entry.state)
        ]
        # A new dictionary: others may be reading the old one.
        self._entries = dict([*kept[1 - self._most :], (key, entry)])

    @property
    def made(self) -> dict[Hashable, Made]:
        """Returns what is kept, by its key."""
        return {key: entry.made for key, entry in self._entries.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"_most": self._most, "_shared": self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.clear()
