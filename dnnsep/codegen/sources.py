"""Where a layer reads from, from the matched graph to the running program: one type of link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Sources(Generic[T]):
    """What a layer reads: nodes of a graph, or numbers of steps.

    ``x`` is its input; where there are any, the ``residual`` is added to its sums and the ``scale``
    multiplies its input.
    """

    x: T
    residual: T | None = None
    scale: T | None = None

    def items(self) -> list[tuple[str, T]]:
        """Returns the name and the source of each that there is."""
        named = [("residual", self.residual), ("scale", self.scale)]
        return [("x", self.x), *((name, value) for name, value in named if value is not None)]

    def map(self, to: Callable[[T], U]) -> Sources[U]:
        """Returns the same links to what ``to`` makes of each source."""
        return Sources(**{name: to(value) for name, value in self.items()})
