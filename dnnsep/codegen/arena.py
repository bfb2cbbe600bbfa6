"""Where what is between the steps of a program lies: memory is taken again as soon as it is free,
so that it is still in the caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_ALIGN = 64


@dataclass(frozen=True)
class Lifetime:
    """Bytes that are written first by the step ``first`` and read last by the step ``last``."""

    size: int
    first: int
    last: int


def offsets(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Returns where each of these lies, in bytes from the start, and the bytes of all.

    They come in the order of their first steps, and each goes to the lowest place, a multiple of
    64, that nothing has which is needed at the same time.
    """
    places: list[int] = []
    taken: list[tuple[int, int, int]] = []  # begin, end, last step
    total = 0
    for life in lifetimes:
        taken = [place for place in taken if place[2] >= life.first]
        start = 0
        for begin, end, _ in sorted(taken):
            if begin - start >= life.size:
                break
            start = max(start, end)
        end = start + -(-life.size // _ALIGN) * _ALIGN
        taken.append((start, end, life.last))
        places.append(start)
        total = max(total, end)
    return places, total
