"""What is kept of the kinds of input that came last."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Counted(Protocol):
    """What knows when it was used last, as uses are counted."""

    used: int


T = TypeVar("T", bound="Counted")


class Kept(Generic[T]):
    """Values by their keys, so many at most: one more takes the place of the one that was used the
    longest ago. May be read while another thread keeps something."""

    def __init__(self, most: int) -> None:
        self._most, self._uses = most, 0
        self._values: dict[Hashable, T] = {}

    def __getitem__(self, key: Hashable) -> T:
        """Returns a value, which is used now. Raises KeyError where there is none."""
        found = self._values[key]
        self._uses += 1
        found.used = self._uses
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def keep(self, key: Hashable, value: T) -> None:
        """Keeps a value; one thread at a time may do so."""
        kept = {other: old for other, old in self._values.items() if other != key}
        if len(kept) >= self._most:
            del kept[min(kept, key=lambda other: kept[other].used)]
        self._uses += 1
        value.used = self._uses
        # A new dictionary: others may be reading the old one.
        self._values = {**kept, key: value}

    def items(self) -> list[tuple[Hashable, T]]:
        """Returns the keys and their values, those that were kept first before the others."""
        return list(self._values.items())
