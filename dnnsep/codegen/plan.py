"""How a problem is cut up for the fused kernel: pieces, tiles, panels, parts.

A *piece* is a run of output pixels, as many as the multiplication keeps in registers: of one row,
or where rows are short of all pixels one after the other, wherever rows end. A *tile* is some
pieces one after the other, whose depthwise result is kept in the inner caches: of short rows, the
whole rows that they touch. A *panel* is the output channels that the multiplication keeps in
registers. A *part* is what one thread does: a range of pieces by a range of panels. README.md has
a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dnnsep.codegen.dots import Dot
from dnnsep.codegen.extent import output_rows
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.stages.base import Row, Window
from dnnsep.problem import Problem

# Rows up to so long are short however few pixels the registers hold: cut up, each would leave a
# narrow piece.
_SHORT_ROW = 14


@dataclass(frozen=True)
class Plan:
    """One way to cut a problem up.

    All of it but the ``tile`` decides a kernel's code; that one is read from the task, so that
    plans which differ in it alone share a kernel.

    ``rows`` are the pieces of one output row, or just the whole row where rows are short.
    ``pieces`` in all, of up to ``pixels`` each; ``vectors`` a panel; ``tile`` in pieces; the work
    is cut into ``pixel_parts`` x ``channel_parts``. ``streaming`` stores go past the caches;
    ``prefetch`` says whether the input of the next tile is fetched during a multiplication; of the
    weights of the next panel each round of its loop fetches ``ahead`` lines. ``gathers`` says
    whether a product whose input could be read where it is copies it into a tile first;
    ``overlap``, of a tile unit, whether vectors work in the shadow of its products. Of a ``ranged``
    plan a part is any range of pieces, whose number is ``range_part``'s.
    """

    isa: Isa
    rows: tuple[Row, ...]
    pieces: int
    pixels: int
    vectors: int
    tile: int
    pixel_parts: int
    channel_parts: int
    streaming: bool = False
    prefetch: bool = False
    ahead: int = 0
    gathers: bool = False
    overlap: bool = False
    ranged: bool = False

    @property
    def parts(self) -> int:
        return self.pixel_parts * self.channel_parts

    @property
    def untiled(self) -> Plan:
        """What of the plan decides the code of its kernel."""
        return replace(self, tile=0)

    @property
    def short_rows(self) -> bool:
        return len(self.rows) == 1

    @property
    def by_ranges(self) -> Plan:
        """The plan for parts that are any ranges of pieces, by all panels."""
        return replace(self, pixel_parts=1, channel_parts=1, streaming=False, ranged=True)

    def whole_rows(self, out_pixels: int) -> int:
        """Returns how many whole short rows of so many output pixels in all each piece is; 0 where
        pieces do not end where rows do."""
        if not self.short_rows or self.pieces * self.pixels != out_pixels:
            return 0
        rows, rest = divmod(self.pixels, self.rows[0].width)
        return 0 if rest else rows


def cut(
    problem: Problem, layer: Layer, vectors: int, threads: int
) -> tuple[tuple[Row, ...], int, int, int]:
    """Returns ``rows``, ``pieces``, ``pixels`` and ``pixel_parts`` of a plan with such panels, for
    so many threads at most."""
    most = layer.dot.pixels(layer.isa, vectors)
    height, width = output_rows(problem)
    if width <= max(most, _SHORT_ROW):
        parts = min(threads, problem.out_pixels)
        pieces = parts * -(-problem.out_pixels // (parts * most))  # as many for each
        return (Row(0, width),), pieces, -(-problem.out_pixels // pieces), parts
    widths = _widths(width, most, layer.dot)
    rows = tuple(Row(sum(widths[:i]), widths[i]) for i in range(len(widths)))
    pieces = height * len(rows)
    return rows, pieces, rows[0].width, min(threads, pieces)


def by_rows(problem: Problem, plan: Plan, most: int) -> Plan:
    """Returns a plan of short rows with pieces of as many whole ones as fit so many pixels; the
    plan itself where not even one does."""
    count, width = output_rows(problem)
    rows = max((n for n in range(1, most // width + 1) if count % n == 0), default=0)
    if not rows:
        return plan
    pieces = count // rows
    return replace(
        plan, pieces=pieces, pixels=rows * width, pixel_parts=min(plan.pixel_parts, pieces)
    )


def _widths(width: int, most: int, dot: Dot) -> list[int]:
    """Returns the widths of the pieces of a row, of up to so many pixels each, wider ones first.

    They are nearly equal, except where all but the last can be the widest and the last fills one
    of the two tiles of pixels that a product on a tile unit takes.
    """
    whole, left = divmod(width, most)
    if dot.in_tiles and left >= most // 2:
        return [most] * whole + [left]
    count = -(-width // most)
    base, wider = divmod(width, count)
    return [base + (i < wider) for i in range(count)]


def met_columns(
    window: Window, plan: Plan, width: int, out_pixels: int
) -> list[tuple[range, ...]] | None:
    """Returns, for the pieces of a row one after the other, the kernel's columns that meet an image
    so wide at each pixel; None where pieces are not alike from row to row."""
    rows = plan.whole_rows(out_pixels) if plan.short_rows else 1
    return [window.over(row, width).known * rows for row in plan.rows] if rows else None


def without_product(problem: Problem, layer: Layer, threads: int) -> Plan:
    """Returns the plan of a layer that multiplies no tile: no piece goes through rows. Of a mean a
    piece is a vector of channels."""
    rows, _, _, _ = cut(problem, layer, 1, 1)
    (stage,) = layer.stages
    pieces = problem.batch * stage.pieces_of_image(layer.isa, problem.out_height * len(rows))
    return Plan(
        layer.isa,
        rows,
        pieces,
        rows[0].width,
        vectors=1,
        tile=1,
        pixel_parts=min(threads, pieces),
        channel_parts=1,
    )


def range_part(first: int, end: int) -> int:
    """Returns the number of the part of a ranged plan that is the pieces [first, end)."""
    return first | end << 32


def first_pixel(problem: Problem, plan: Plan, piece: int) -> int:
    """Returns which of all output pixels is the first of a piece; of the end of all pieces how many
    there are."""
    if plan.short_rows:
        return piece * problem.out_pixels // plan.pieces
    row, place = divmod(piece, len(plan.rows))
    return row * output_rows(problem)[1] + plan.rows[place].start


def part_pixels(problem: Problem, plan: Plan, part: int) -> range:
    """Returns which of all output pixels a part computes, of some channels each."""
    number = part // plan.channel_parts
    first, last = (plan.pieces * n // plan.pixel_parts for n in (number, number + 1))
    return range(first_pixel(problem, plan, first), first_pixel(problem, plan, last))


def tile_rows(problem: Problem, plan: Plan, part: int) -> list[int]:
    """Returns how many short rows each tile of a range of pieces touches."""
    first, last = (plan.pieces * n // plan.pixel_parts for n in (part, part + 1))
    _, width = output_rows(problem)
    counts = []
    for piece in range(first, last, plan.tile):
        stop = first_pixel(problem, plan, min(piece + plan.tile, last))
        counts.append(-(-stop // width) - first_pixel(problem, plan, piece) // width)
    return counts


def tile_bytes(problem: Problem, layer: Layer, plan: Plan) -> int:
    """Returns the bytes of a whole tile; 0 where the layer keeps none."""
    if layer.source is None or layer.product is None:
        return 0
    pixels = plan.tile * plan.pixels
    if plan.short_rows:
        _, width = output_rows(problem)
        if plan.ranged:  # a tile begins at any piece
            rows = (pixels + width - 2) // width + 1
        else:
            rows = max(max(tile_rows(problem, plan, part)) for part in range(plan.pixel_parts))
        pixels = width * rows
    return pixels * layer.tile_stride * layer.dot.bytes
