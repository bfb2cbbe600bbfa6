"""How a problem is cut up for the fused kernel: pieces, tiles, panels, threads.

A *piece* is a run of output pixels of one row, or a few whole rows where rows are short: as many
pixels as the multiplication keeps in registers. A *tile* is some pieces one after the other, whose
depthwise result is kept in the inner caches. A *panel* is the output channels that the
multiplication keeps in registers. A *part* is what one thread does: a range of pieces by a range
of panels.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnnsep.codegen.isa import Isa
from dnnsep.problem import Problem

# Registers of a multiplication that do not hold sums: the weights of a step, one broadcast value.
_SPARE = 1


@dataclass(frozen=True)
class Row:
    """Where a piece lies in its row: output columns [start, start + width)."""

    start: int
    width: int


@dataclass(frozen=True)
class Plan:
    """``rows`` are the pieces of one output row, or the whole row, of which a piece then has
    ``rows_per_piece``. ``vectors`` a panel; ``tile`` in pieces; the work is cut into
    ``pixel_parts`` x ``channel_parts``. ``streaming`` stores go past the caches; ``prefetch`` says
    whether the input of the next tile is fetched during a multiplication."""

    isa: Isa
    rows: tuple[Row, ...]
    rows_per_piece: int
    vectors: int
    tile: int
    pixel_parts: int
    channel_parts: int
    streaming: bool
    prefetch: bool

    @property
    def parts(self) -> int:
        return self.pixel_parts * self.channel_parts

    @property
    def pixels(self) -> int:
        """Of the widest piece: a tile has so many from one piece to the next."""
        return max(row.width for row in self.rows) * self.rows_per_piece


def cut_rows(problem: Problem, isa: Isa, vectors: int) -> tuple[tuple[Row, ...], int]:
    """``rows`` and ``rows_per_piece`` of a plan with such panels; the wider pieces come first."""
    most = (isa.registers - vectors - _SPARE) // vectors
    _, _, height, width = problem.output_shape
    if width <= most:
        return (Row(0, width),), min(most // width, problem.batch * height)
    count = -(-width // most)
    base, wider = divmod(width, count)
    rows = (Row(i * base + min(i, wider), base + (i < wider)) for i in range(count))
    return tuple(rows), 1


def pieces(problem: Problem, rows: tuple[Row, ...], rows_per_piece: int) -> int:
    return -(-problem.batch * problem.output_shape[2] * len(rows) // rows_per_piece)


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
    """Channels of a tile's row: the middle channels with each copy filled up to whole blocks."""
    return problem.channel_multiplier * blocks(problem, isa) * block_channels(problem, isa)


def row_stride(problem: Problem, isa: Isa) -> int:
    """Elements from one pixel of a tile to the next.

    A vector more than the depth where rows would all start at the same place of a cache's way.
    """
    size = tile_element_bytes(problem, isa)
    found = depth(problem, isa)
    return found + isa.lanes * 4 // size if found * size % 1024 == 0 else found


def tile_bytes(problem: Problem, plan: Plan) -> int:
    """Of a whole tile."""
    pixel = row_stride(problem, plan.isa) * tile_element_bytes(problem, plan.isa)
    return plan.tile * plan.pixels * pixel
