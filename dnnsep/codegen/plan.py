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

# The depthwise result of a tile. Small where the pointwise weights stay near; where they do not,
# larger, so that they are fetched less often.
_NEAR_WEIGHTS = 256 * 1024
_SMALL_TILE = 24 * 1024
_LARGE_TILE = 256 * 1024


@dataclass(frozen=True)
class Row:
    """Where a piece lies in its row: output columns [start, start + width)."""

    start: int
    width: int


@dataclass(frozen=True)
class Plan:
    """``rows`` are the pieces of one output row, or the whole row, of which a piece then has
    ``rows_per_piece``. ``vectors`` a panel; ``tile`` in pieces; the work is cut into
    ``pixel_parts`` x ``channel_parts``."""

    isa: Isa
    rows: tuple[Row, ...]
    rows_per_piece: int
    vectors: int
    tile: int
    pixel_parts: int
    channel_parts: int
    streaming: bool

    @property
    def parts(self) -> int:
        return self.pixel_parts * self.channel_parts


def plan(problem: Problem, isa: Isa, threads: int, streaming: bool = False) -> Plan:
    vectors = min(2, -(-problem.out_channels // isa.lanes))
    most = (isa.registers - vectors - _SPARE) // 2
    _, _, height, width = problem.output_shape
    total_rows = problem.batch * height
    if width > most:
        count = -(-width // most)
        base, wider = divmod(width, count)
        rows = tuple(Row(i * base + min(i, wider), base + (i < wider)) for i in range(count))
        per_piece, pieces, pixels = 1, total_rows * count, -(-width // count)
    else:
        rows, per_piece = (Row(0, width),), min(most // width, total_rows)
        pieces, pixels = -(-total_rows // per_piece), per_piece * width
    pixel_parts, channel_parts = _split(problem, isa, threads, pieces, pixels, vectors)
    stride = row_stride(problem, isa) * (2 if tile_is_bf16(problem, isa) else 4)
    weights = problem.mid_channels * problem.out_channels * (2 if problem.dtype == "bf16" else 4)
    room = _SMALL_TILE if weights <= _NEAR_WEIGHTS else _LARGE_TILE
    tile = max(1, min(room // (stride * pixels), -(-pieces // pixel_parts)))
    return Plan(isa, rows, per_piece, vectors, tile, pixel_parts, channel_parts, streaming)


def _split(
    problem: Problem, isa: Isa, threads: int, pieces: int, pixels: int, vectors: int
) -> tuple[int, int]:
    """The split with the least work for the busiest thread; over pixels where two are equal.

    Threads that share pixels each run the depthwise stage for themselves.
    """
    panels = -(-problem.out_channels // (isa.lanes * vectors))
    taps = problem.kernel[0] * problem.kernel[1]

    def busiest(channel_parts: int) -> float:
        share = -(-panels // channel_parts) * isa.lanes * vectors
        most = min(-(-pieces // (threads // channel_parts)) * pixels, problem.out_pixels)
        return most * (share + 2 * taps)

    choices = [n for n in range(1, threads + 1) if threads % n == 0 and n <= panels]
    best = min(choices, key=lambda n: (busiest(n), n))
    return max(1, min(threads // best, pieces)), best


def tile_is_bf16(problem: Problem, isa: Isa) -> bool:
    return problem.dtype == "bf16" and isa.dot_bf16


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
    size = 2 if tile_is_bf16(problem, isa) else 4
    found = depth(problem, isa)
    return found + isa.lanes * 4 // size if found * size % 1024 == 0 else found
