"""How a problem is cut up for the fused kernel: pieces, tiles, panels, threads.

A *piece* is a run of output pixels, as many as the multiplication keeps in registers: of one row,
or where rows are short of all pixels one after the other, wherever rows end. A *tile* is some
pieces one after the other, whose depthwise result is kept in the inner caches: of short rows, the
whole rows that they touch. A *panel* is the output channels that the multiplication keeps in
registers. A *part* is what one thread does: a range of pieces by a range of panels.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnnsep.codegen.lang.isa import Isa
from dnnsep.problem import Problem
from dnnsep.single import Dense, Depthwise, Mean

# Steps of the multiplication that its loop has written out; a step takes one channel of a tile's
# row, or a pair of bf16.
STEPS_AT_ONCE = 4

# Registers of a multiplication that do not hold sums: the weights of a step, one broadcast value.
_SPARE = 1
# Rows up to so long are short however few pixels the registers hold: cut up, each would leave a
# narrow piece.
_SHORT_ROW = 14


@dataclass(frozen=True)
class Row:
    """A run of pixels in a row: output columns [start, start + width)."""

    start: int
    width: int


@dataclass(frozen=True)
class Plan:
    """``rows`` are the pieces of one output row, or just the whole row where rows are short.
    ``pieces`` in all, of up to ``pixels`` each; ``vectors`` a panel; ``tile`` in pieces; the work
    is cut into ``pixel_parts`` x ``channel_parts``. ``streaming`` stores go past the caches;
    ``prefetch`` says whether the input of the next tile is fetched during a multiplication,
    ``ahead`` whether the weights of the next panel are."""

    isa: Isa
    rows: tuple[Row, ...]
    pieces: int
    pixels: int
    vectors: int
    tile: int
    pixel_parts: int
    channel_parts: int
    streaming: bool
    prefetch: bool
    ahead: bool

    @property
    def parts(self) -> int:
        return self.pixel_parts * self.channel_parts

    @property
    def short_rows(self) -> bool:
        return len(self.rows) == 1


def cut(
    problem: Problem, isa: Isa, vectors: int, threads: int
) -> tuple[tuple[Row, ...], int, int, int]:
    """``rows``, ``pieces``, ``pixels`` and ``pixel_parts`` of a plan with such panels, for so many
    threads at most."""
    most = (isa.registers - vectors - _SPARE) // vectors
    _, _, height, width = problem.output_shape
    if width <= max(most, _SHORT_ROW):
        parts = min(threads, problem.out_pixels)
        pieces = parts * -(-problem.out_pixels // (parts * most))  # as many for each
        return (Row(0, width),), pieces, -(-problem.out_pixels // pieces), parts
    count = -(-width // most)
    base, wider = divmod(width, count)  # the wider ones come first
    rows = tuple(Row(i * base + min(i, wider), base + (i < wider)) for i in range(count))
    pieces = problem.batch * height * count
    return rows, pieces, rows[0].width, min(threads, pieces)


def by_rows(problem: Problem, isa: Isa, threads: int) -> Plan:
    """For a depthwise stage alone: no piece goes through rows. Of a mean a piece is a vector of
    channels."""
    rows, _, _, _ = cut(problem, isa, 1, 1)
    pieces = problem.batch * problem.out_height * len(rows)
    if isinstance(problem, Mean):
        pieces = problem.batch * -(-problem.in_channels // isa.lanes)
    return Plan(
        isa,
        rows,
        pieces,
        rows[0].width,
        vectors=1,
        tile=1,
        pixel_parts=min(threads, pieces),
        channel_parts=1,
        streaming=False,
        prefetch=False,
        ahead=False,
    )


def first_pixel(problem: Problem, plan: Plan, piece: int) -> int:
    """Of a piece of short rows, among all."""
    return piece * problem.out_pixels // plan.pieces


def tile_rows(problem: Problem, plan: Plan, part: int) -> list[int]:
    """How many short rows each tile of a range of pieces touches."""
    first, last = (plan.pieces * n // plan.pixel_parts for n in (part, part + 1))
    width = problem.output_shape[3]
    found = []
    for piece in range(first, last, plan.tile):
        stop = first_pixel(problem, plan, min(piece + plan.tile, last))
        found.append(-(-stop // width) - first_pixel(problem, plan, piece) // width)
    return found


def panels(problem: Problem, isa: Isa, vectors: int) -> int:
    return -(-problem.out_channels // (isa.lanes * vectors))


def tile_is_bf16(problem: Problem, isa: Isa) -> bool:
    return problem.dtype == "bf16" and isa.dot_bf16


def element_bytes(problem: Problem) -> int:
    return 2 if problem.dtype == "bf16" else 4


def tile_element_bytes(problem: Problem, isa: Isa) -> int:
    """Of a tile and of the pointwise weights."""
    return 2 if tile_is_bf16(problem, isa) else 4


def block_channels(problem: Problem, isa: Isa) -> int:
    """Channels that the depthwise stage takes at a time: a full load of the input's dtype."""
    return isa.lanes * (2 if problem.dtype == "bf16" else 1)


def blocks(problem: Problem, isa: Isa) -> int:
    """Blocks of channels, for each of the multiplier's copies."""
    return -(-problem.in_channels // block_channels(problem, isa))


def depth(problem: Problem, isa: Isa) -> int:
    """Channels of a tile's row: the middle channels with each copy filled up to whole blocks, or of
    a dense convolution to whole rounds of the multiplication's loop."""
    if isinstance(problem, Dense):
        round_ = STEPS_AT_ONCE * (2 if tile_is_bf16(problem, isa) else 1)
        return -(-problem.mid_channels // round_) * round_
    return problem.channel_multiplier * blocks(problem, isa) * block_channels(problem, isa)


def row_stride(problem: Problem, isa: Isa) -> int:
    """Elements from one pixel of a tile to the next.

    A vector more than the depth where rows would all start at the same place of a cache's way.
    """
    if isinstance(problem, Depthwise):  # the output takes the tile's place
        return problem.out_channels
    size = tile_element_bytes(problem, isa)
    found = depth(problem, isa)
    return found + isa.lanes * 4 // size if found * size % 1024 == 0 else found


def tile_bytes(problem: Problem, plan: Plan) -> int:
    """Of a whole tile."""
    pixels = plan.tile * plan.pixels
    if plan.short_rows:
        width = problem.output_shape[3]
        pixels = width * max(
            max(tile_rows(problem, plan, part)) for part in range(plan.pixel_parts)
        )
    return pixels * row_stride(problem, plan.isa) * tile_element_bytes(problem, plan.isa)
