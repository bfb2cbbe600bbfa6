"""In which order a thread calls the layers of a cascade, and where what is between them lies.

A *cascade* is layers of which each needs just what the one before it wrote. A thread makes the
output of the last layer *band* by band; before each band it has the layers before make what is
missing under it. What a layer writes for the next lies in a *rolling buffer* of the thread: whole
pixels one after the other, and where they come to its end, those that are still needed are moved to
its beginning.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dnnsep.codegen.extent import Extent, output_rows
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.plan import Plan, first_pixel
from dnnsep.codegen.reach import pixels_read
from dnnsep.problem import Problem

# Rolling buffers start at a multiple of this, as tensors do.
_ALIGN = 64


@dataclass(frozen=True)
class Link:
    """A layer of a cascade: its problem, and the ranged plan whose pieces are asked for."""

    problem: Problem
    layer: Layer
    plan: Plan

    @cached_property
    def out_bytes(self) -> int:
        """Bytes of a pixel of the output."""
        return self.problem.out_channels * self.problem.precision.destination.bytes

    def start(self, piece: int) -> int:
        """Returns the first output pixel of a piece."""
        return first_pixel(self.problem, self.plan, piece)

    def piece_at(self, pixel: int) -> int:
        """Returns the piece that an output pixel is in."""
        return bisect_right(range(self.plan.pieces), pixel, key=self.start) - 1

    def pieces_until(self, pixel: int) -> int:
        """Returns how many pieces there are up to an output pixel that is not needed."""
        return bisect_left(range(self.plan.pieces), pixel, key=self.start)

    def read(self, first: int, end: int) -> range:
        """Returns the input pixels under the pieces [first, end), no fewer than are read."""
        pixels = range(self.start(first), self.start(end))
        if self.plan.short_rows and self.layer.source is not None:
            # A tile is filled with the whole rows that it touches.
            width = output_rows(self.problem)[1]
            pixels = range(pixels.start // width * width, -(-pixels.stop // width) * width)
        return pixels_read(self.layer, Extent.of(self.problem), pixels)


@dataclass(frozen=True)
class Run:
    """Pieces [``first``, ``end``) of a link: ``x`` and ``y`` are where the first pixel of the whole
    input and output would be, in bytes from the start of the thread's memory; None for those that
    are the cascade's own."""

    link: int
    first: int
    end: int
    x: int | None
    y: int | None


@dataclass(frozen=True)
class Move:
    """So many bytes of a thread's memory to another place in it, which is before."""

    source: int
    target: int
    bytes: int


@dataclass
class _Rolling:
    """A rolling buffer: from ``place`` on there are ``pixels``, of which the first is ``origin``;
    the pieces before ``done`` were made."""

    place: int
    pixels: int
    origin: int = -1
    done: int = 0


@dataclass(frozen=True)
class Schedule:
    """The calls of each part of a cascade, and the bytes of a thread's rolling buffers."""

    parts: tuple[tuple[Run | Move, ...], ...]
    bytes: int


def schedule(links: Sequence[Link], parts: int, band: int, room: int) -> Schedule:
    """Returns the schedule of a cascade whose last layer is cut into so many parts of equal size,
    each into bands of so many pieces. Each rolling buffer is no larger than ``room`` bytes unless
    a band needs more."""
    pieces = links[-1].plan.pieces
    shares = [range(pieces * n // parts, pieces * (n + 1) // parts) for n in range(parts)]
    sizes = [
        max(
            max(_Needed(links, number).pixels(share, band) for share in shares),
            min(link.problem.out_pixels, room // link.out_bytes),
        )
        for number, link in enumerate(links[:-1])
    ]
    places, end = [], 0
    for link, pixels in zip(links, sizes, strict=False):
        places.append(end)
        end += -(-pixels * link.out_bytes // _ALIGN) * _ALIGN
    made = []
    for share in shares:
        buffers = [_Rolling(place, pixels) for place, pixels in zip(places, sizes, strict=True)]
        made.append(tuple(_Part(links, buffers).calls(share, band)))
    return Schedule(tuple(made), end)


@dataclass(frozen=True)
class _Needed:
    """How many pixels the rolling buffer after a link has to hold."""

    links: Sequence[Link]
    number: int

    def pixels(self, share: range, band: int) -> int:
        most = 0
        for first in range(share.start, share.stop, band):
            pieces = range(first, min(first + band, share.stop))
            for following in range(len(self.links) - 1, self.number, -1):
                read = self.links[following].read(pieces.start, pieces.stop)
                link = self.links[following - 1]
                pieces = range(link.piece_at(read.start), link.pieces_until(read.stop))
            link = self.links[self.number]
            most = max(most, link.start(pieces.stop) - link.start(pieces.start))
        return most


@dataclass
class _Part:
    """One thread's share of a cascade, with its rolling buffers after each link but the last."""

    links: Sequence[Link]
    buffers: Sequence[_Rolling]
    made: list[Run | Move] = field(default_factory=list)

    def calls(self, share: range, band: int) -> list[Run | Move]:
        for first in range(share.start, share.stop, band):
            self._make(len(self.links) - 1, first, min(first + band, share.stop))
        return self.made

    def _make(self, number: int, first: int, end: int) -> None:
        """Adds the calls for pieces of a link, those of the links before it first."""
        if number > 0:
            self._provide(number - 1, self.links[number].read(first, end))
        x, y = (
            self._place(n) if 0 <= n < len(self.buffers) else None for n in (number - 1, number)
        )
        self.made.append(Run(number, first, end, x, y))

    def _provide(self, number: int, read: range) -> None:
        """Adds the calls that make these pixels of a link's output, as far as they are missing."""
        link, buffer = self.links[number], self.buffers[number]
        first, end = link.piece_at(read.start), link.pieces_until(read.stop)
        if buffer.origin < 0 or first > buffer.done:
            buffer.done, buffer.origin = first, link.start(first)
        if end <= buffer.done:
            return
        if link.start(end) - buffer.origin > buffer.pixels:
            kept = link.start(first)
            moved = (link.start(buffer.done) - kept) * link.out_bytes
            source = buffer.place + (kept - buffer.origin) * link.out_bytes
            if moved:
                self.made.append(Move(source, buffer.place, moved))
            buffer.origin = kept
        self._make(number, buffer.done, end)
        buffer.done = end

    def _place(self, number: int) -> int:
        buffer = self.buffers[number]
        return buffer.place - buffer.origin * self.links[number].out_bytes
