"""In which order a thread calls the members of a cascade, and where what is between them lies.

A thread makes the output of the last member *band* by band; before each band it has the members
before make what is missing under it. What a member writes for others lies in a *rolling buffer* of
the thread: whole pixels one after the other, and where they come to its end, those that are still
needed are moved to its beginning.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

# Rolling buffers start at a multiple of this, as tensors do.
_ALIGN = 64


class Link(Protocol):
    """What a schedule has to know of a member: it makes pieces of its output, which are whole
    pixels one after the other, of ``out_bytes`` each. ``starts`` has the first pixel of each piece,
    and then the number of all. ``reads`` has the number of the member that writes an operand, by
    the operand's name."""

    @property
    def reads(self) -> Mapping[str, int]: ...

    @property
    def starts(self) -> Sequence[int]: ...

    @property
    def out_bytes(self) -> int: ...

    def read(self, operand: str, first: int, end: int) -> range:
        """Returns the pixels of an operand under the pieces [first, end), no fewer than are
        read."""


@dataclass(frozen=True)
class Run:
    """Pieces [``first``, ``end``) of a member: ``places`` has for each operand that another member
    writes, and for ``y`` unless that is the cascade's own, where the first pixel of all would be,
    in bytes from the start of the thread's memory."""

    link: int
    first: int
    end: int
    places: Mapping[str, int]


@dataclass(frozen=True)
class Move:
    """So many bytes of a thread's memory to another place in it, which is before."""

    source: int
    target: int
    bytes: int


@dataclass(frozen=True)
class Schedule:
    """The calls of each part of a cascade, and the bytes of a thread's rolling buffers."""

    parts: tuple[tuple[Run | Move, ...], ...]
    bytes: int


def schedule(links: Sequence[Link], parts: int, bands: Sequence[int], room: int) -> Schedule:
    """Returns the schedule of a cascade whose last member is cut into so many parts of equal size.
    Of each member no more than its number of ``bands`` pieces are made at once. Each rolling buffer
    is no larger than ``room`` bytes unless what is needed at once is.

    Raises ValueError where a member would have to go back to what it has passed.
    """
    pieces = len(links[-1].starts) - 1
    orders = [
        _order(links, bands, pieces * n // parts, pieces * (n + 1) // parts) for n in range(parts)
    ]
    places, sizes, end = [], [], 0
    for number, link in enumerate(links[:-1]):
        needed = max(_Use(links, order, number).pixels for order in orders)
        sizes.append(max(needed, min(link.starts[-1], room // link.out_bytes)))
        places.append(end)
        end += -(-sizes[-1] * link.out_bytes // _ALIGN) * _ALIGN
    made = tuple(tuple(_placed(links, order, places, sizes)) for order in orders)
    return Schedule(made, end)


@dataclass(frozen=True)
class _Made:
    """Pieces [``first``, ``end``) of a member, and which pixels they read of each operand that
    another member writes."""

    link: int
    first: int
    end: int
    reads: Mapping[str, range]


def _order(links: Sequence[Link], bands: Sequence[int], first: int, end: int) -> list[_Made]:
    """Returns what is made one after the other for these pieces of the last member."""
    made: list[_Made] = []
    begun = [-1] * len(links)
    done = [0] * len(links)

    def make(number: int, first: int, end: int) -> None:
        link = links[number]
        for at in range(first, end, bands[number]):
            stop = min(at + bands[number], end)
            reads = {operand: link.read(operand, at, stop) for operand in link.reads}
            # Those that need the most first: a scale needs all of an image, x some pixels of it.
            for operand, source in sorted(link.reads.items(), key=lambda item: -item[1]):
                provide(source, reads[operand])
            made.append(_Made(number, at, stop, reads))

    def provide(number: int, read: range) -> None:
        starts = links[number].starts
        first, end = bisect_right(starts, read.start) - 1, bisect_left(starts, read.stop)
        if begun[number] < 0 or first > done[number]:
            begun[number] = done[number] = first
        if first < begun[number]:
            raise ValueError("a member of the cascade would have to go back")
        if end > done[number]:
            make(number, done[number], end)
            done[number] = end

    make(len(links) - 1, first, end)
    return made


class _Use:
    """What of a member's output is written and read as time goes on."""

    def __init__(self, links: Sequence[Link], order: Sequence[_Made], number: int) -> None:
        starts = links[number].starts
        self.writes = {
            time: range(starts[made.first], starts[made.end])
            for time, made in enumerate(order)
            if made.link == number
        }
        needed = starts[-1]
        # By time the first pixel that is read then or later.
        self.oldest = [needed] * len(order)
        for time in reversed(range(len(order))):
            made = order[time]
            for operand, source in links[made.link].reads.items():
                if source == number:
                    needed = min(needed, made.reads[operand].start)
            self.oldest[time] = needed

    def kept(self, time: int) -> int:
        """Returns the first pixel that has to be there when some are written."""
        return min(self.oldest[time], self.writes[time].start)

    @property
    def pixels(self) -> int:
        """How many pixels there are at once, from the first one that is still needed on."""
        return max((w.stop - self.kept(time) for time, w in self.writes.items()), default=0)


def _placed(
    links: Sequence[Link], order: Sequence[_Made], places: Sequence[int], sizes: Sequence[int]
) -> Iterator[Run | Move]:
    """Yields what is made with where it is read and written, and the moves that takes."""
    uses = [_Use(links, order, number) for number in range(len(links) - 1)]
    origins = [-1] * len(uses)  # the first pixel in each rolling buffer
    done = [0] * len(uses)

    def place(number: int) -> int:
        return places[number] - origins[number] * links[number].out_bytes

    for time, made in enumerate(order):
        number = made.link
        operands = {name: place(source) for name, source in links[number].reads.items()}
        if number < len(uses):
            written, kept = uses[number].writes[time], uses[number].kept(time)
            if origins[number] < 0:
                origins[number] = kept
            elif written.stop - origins[number] > sizes[number]:
                size = links[number].out_bytes
                moved = (done[number] - kept) * size
                if moved > 0:
                    source = places[number] + (kept - origins[number]) * size
                    yield Move(source, places[number], moved)
                origins[number] = kept
            done[number] = written.stop
            operands["y"] = place(number)
        yield Run(number, made.first, made.end, operands)
