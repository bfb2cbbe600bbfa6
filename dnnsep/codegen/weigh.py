"""The plans that a problem can have, put in order by a small model of what each costs.

Cycles are those of a core that starts two vector multiply-adds each. The caches and the rates of
this CPU are measured (rates.py); which share of the time of a line of memory the arithmetic does
not hide was fitted to plans measured on a Zen 5. The model only has to put plans in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from dnnsep.codegen.dots.base import STEPS_AT_ONCE
from dnnsep.codegen.extent import output_rows
from dnnsep.codegen.lang.isa import Isa, this_isa
from dnnsep.codegen.layer import Layer, layer_of
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.plan import (
    Plan,
    by_rows,
    cut,
    first_pixel,
    met_columns,
    tile_bytes,
    tile_rows,
    without_product,
)
from dnnsep.codegen.prefetch import Ahead
from dnnsep.codegen.rates import rates
from dnnsep.codegen.stages.base import Window
from dnnsep.host.caches import sizes_of_caches
from dnnsep.problem import Problem

_LINE = 64
_WAY_BYTES = 4096  # of an L1 cache: x86 finds a line's place by its address within a page
# Shares of the time of a line that arithmetic does not hide: the further away it comes from, the
# less is hidden.
_EXPOSED = {"L2": 0.13, "L3": 0.31, "DRAM": 0.66}
_HELD = 0.75  # share of a cache that stays in it
_OVERFLOW = 1.5  # L1 sizes: what passes through costs more with its size up to here
_WRITTEN = 6  # times as costly as reading a line of a tile: it goes out and comes back

# Plans that cost up to so many times the best are close, and so many of them are worth measuring.
_CLOSE, _MOST_CLOSE = 1.1, 8


@dataclass(frozen=True)
class Caches:
    """Bytes of a core's own first and second cache, and of the last level; and the cycles that a
    line takes from the levels beyond the first, measured on a Zen 5 where they are not given."""

    l1: int
    l2: int
    last: int
    line_cycles: tuple[float, float, float] = (2.3, 3.2, 6.1)

    def waits(self, level: str) -> float:
        """Returns the cycles by which a line from a level makes the arithmetic wait."""
        if level == "L1":
            return 0.0
        number = list(_EXPOSED).index(level)
        return _EXPOSED[level] * self.line_cycles[number]


@dataclass(frozen=True)
class Cost:
    """Cycles of the busiest part of a plan.

    ``depthwise`` is the arithmetic of the first stage, of stages that overlap what is more than
    the second one's; ``pointwise`` is that of the product; fetching
    the product's weights again for each tile adds ``weights``, and fetching the tile for each panel
    adds ``tile``.
    """

    depthwise: float
    pointwise: float
    weights: float
    tile: float

    @property
    def cycles(self) -> float:
        return self.depthwise + self.pointwise + self.weights + self.tile


@cache
def this_caches() -> Caches:
    """Returns the caches of the first CPU that this process may run on, as they were measured."""
    known = rates(this_isa())
    l2, l3, dram = (known.line_ns[level] / known.cycle_ns for level in _EXPOSED)
    return Caches(*sizes_of_caches(), (l2, l3, dram))


def close_plans(problem: Problem, isa: Isa, threads: int) -> list[tuple[Plan, Cost]]:
    """Returns the best plan by the model and a few that cost little more, best first."""
    caches = this_caches()
    costs = [
        (plan, cost(problem, plan, caches)) for plan in all_plans(problem, isa, threads, caches)
    ]
    costs.sort(key=lambda pair: pair[1].cycles)
    close = [pair for pair in costs if pair[1].cycles <= _CLOSE * costs[0][1].cycles]
    return close[:_MOST_CLOSE]


def cost(problem: Problem, plan: Plan, caches: Caches) -> Cost:
    """Returns what the busiest part of a plan takes, as far as the model knows."""
    layer = layer_for(problem, plan)
    isa, dot, product = plan.isa, layer.dot, layer.product
    my_pieces = -(-plan.pieces // plan.pixel_parts)
    if product is None:
        share = my_pieces / plan.pieces
        return Cost(layer.stages[0].cycles_alone(problem, isa, dot) * share, 0.0, 0.0, 0.0)
    my_panels = -(-product.panels(isa, plan.vectors) // plan.channel_parts)
    tiles = -(-my_pieces // plan.tile)
    runs = _runs(problem, plan, my_pieces)
    pixels = sum(width * count for width, count in runs.items())
    computed = pixels
    if plan.short_rows:
        computed = output_rows(problem)[1] * sum(tile_rows(problem, plan, plan.pixel_parts - 1))
    widths = _shared(min(my_panels * plan.vectors, product.panels(isa, 1)), plan.vectors)

    first_stage = layer.source.cycles(isa, dot) if layer.source is not None else 0.0
    pointwise = (
        layer.slowness
        * _met_share(problem, plan)
        * sum(
            runs[run] * widths[width] * dot.cycles(isa, run, width, layer.depth)
            for run in runs
            for width in widths
        )
    )
    depthwise = computed * first_stage
    if plan.overlap:
        depthwise = max(0.0, depthwise - pointwise)

    panel = layer.depth * isa.lanes * plan.vectors * dot.weight_bytes
    pixel = layer.tile_stride * dot.bytes
    tile = tile_bytes(problem, layer, plan)
    new_input = problem.stride[0] * problem.stride[1] * problem.in_channels
    new_input *= problem.precision.source.bytes
    passing = tile + plan.tile * plan.pixels * new_input
    # The first piece of a tile brings a panel in; for the others it may still be there. The first
    # tile's panels come from memory, where other layers have pushed them, by any plan.
    first = _level(my_panels * panel + passing, caches)
    again = _level(panel + plan.pixels * pixel, caches)
    tile_line = caches.waits("L2") * min(_OVERFLOW, passing / caches.l1)
    written = _WRITTEN if layer.source is not None else 0
    return Cost(
        depthwise=depthwise,
        pointwise=pointwise,
        weights=panel / _LINE * my_panels * (tiles - 1) * caches.waits(first)
        + panel / _LINE * my_panels * (my_pieces - tiles) * caches.waits(again),
        tile=pixels * pixel / _LINE * (my_panels + written) * tile_line,
    )


def layer_for(problem: Problem, plan: Plan) -> Layer:
    """Returns the layer that a plan's kernel runs, with its input gathered where the plan says."""
    layer = layer_of(problem, plan.isa)
    return layer.gathered() if plan.gathers else layer


@lru_cache(1024)
def _met_share(problem: Problem, plan: Plan) -> float:
    """Returns the share of an ordinary convolution's products that a plan's kernel computes: not
    those with taps outside the image."""
    layer = layer_for(problem, plan)
    if not layer.skips_taps:
        return 1.0
    window, high = layer.window, problem.out_height
    rows, width = window.kernel
    of_row = [_met_rows(window, row, problem.height) for row in range(high)]
    columns = met_columns(window, plan, problem.width, problem.out_pixels)
    met = taken = 0
    for piece in range(plan.pieces):
        if plan.short_rows:
            start, stop = (first_pixel(problem, plan, piece + n) for n in range(2))
            (image, upper), (last, lower) = (
                divmod(pixel // problem.out_width, high) for pixel in (start, stop - 1)
            )
        else:
            image = last = 0
            upper = lower = piece // len(plan.rows) % high
            row = plan.rows[piece % len(plan.rows)]
            start, stop = row.start, row.start + row.width
        whole = range(rows) if image != last else range(of_row[lower].start, of_row[upper].stop)
        taps = (stop - start) * width
        if columns is not None:
            taps = sum(map(len, columns[piece % len(columns)]))
        met += len(whole) * taps
        taken += rows * width * (stop - start)
    return met / taken


def _met_rows(window: Window, row: int, height: int) -> range:
    """Returns the rows of a kernel that meet an image so high at a row of the output."""
    above, step = row * window.stride[0] - window.padding[0], window.dilation[0]
    first = max(0, -(above // step))
    return range(first, max(first, min(window.kernel[0], (height - 1 - above) // step + 1)))


def _runs(problem: Problem, plan: Plan, my_pieces: int) -> dict[int, float]:
    """Returns how often a part has a piece of so many pixels."""
    if plan.short_rows:
        least, longer = divmod(problem.out_pixels, plan.pieces)
        longer = -(-longer // plan.pixel_parts)
        return {least + 1: longer, least: my_pieces - longer}
    widths = Counter(row.width for row in plan.rows)
    return {width: count * my_pieces / len(plan.rows) for width, count in widths.items()}


def _shared(total: int, most: int) -> Counter[int]:
    """Returns how many groups of each size a total makes, in groups of at most ``most``."""
    groups = Counter({most: total // most, total % most: 1})
    return Counter({size: count for size, count in groups.items() if size and count})


def _level(size: int, caches: Caches) -> str:
    """Returns the cache that holds so many bytes beside what passes through it."""
    sizes = {"L1": caches.l1, "L2": caches.l2, "L3": caches.last}
    return next((name for name, held in sizes.items() if size <= _HELD * held), "DRAM")


def all_plans(problem: Problem, isa: Isa, threads: int, caches: Caches) -> Iterator[Plan]:
    """Yields every plan that is weighed; without a product there is just one."""
    layer = layer_of(problem, isa)
    product = layer.product
    if product is None:
        yield without_product(problem, layer, threads)
        return
    dot = layer.dot
    vectors = min(dot.vectors, product.panels(isa, 1))
    most_channel_parts = product.panels(isa, vectors)
    out_bytes = problem.out_pixels * problem.out_channels * problem.precision.destination.bytes
    in_row = problem.in_channels * problem.precision.source.bytes
    in_bytes = problem.batch * problem.height * problem.width * in_row
    one_vector = Packing(layer, 1)
    weight_bytes = one_vector.panel_bytes * one_vector.panels
    panel_bytes = Packing(layer, vectors).panel_bytes
    rounds = max(1, layer.depth // (dot.k * STEPS_AT_ONCE))
    whole_vectors = problem.out_channels % isa.lanes == 0
    for channel_parts in range(1, min(threads, most_channel_parts) + 1):
        if threads % channel_parts:
            continue
        rows, pieces, pixels, pixel_parts = cut(problem, layer, vectors, threads // channel_parts)
        # Rows of a piece that all start at the same place of the first cache's ways do not fit
        # beside each other once there are more of them than ways. A tile is read at once.
        fits = dot.in_tiles or in_row % _WAY_BYTES != 0 or pixels <= caches.l1 // _WAY_BYTES
        plan = Plan(
            isa,
            rows,
            pieces,
            pixels,
            vectors,
            tile=1,
            pixel_parts=pixel_parts,
            channel_parts=channel_parts,
            # An output that does not fit the last cache beside an input would only push it out.
            streaming=whole_vectors and out_bytes > caches.last // 2,
            # Input that is in the core's own cache needs no fetching. Beside tiles what is fetched
            # ahead was measured to make them slower.
            prefetch=in_bytes > caches.l2 and not dot.in_tiles,
            gathers=layer.source is None and not (layer.reads_input and fits),
        )
        plans = [plan]
        if layer.skips_taps and plan.short_rows:
            plans.append(by_rows(problem, plan, dot.pixels(isa, vectors)))
        for plan in dict.fromkeys(plans):
            for tile in _tile_sizes(-(-plan.pieces // plan.pixel_parts)):
                # Weights as large as a core's first cache were pushed out of it by other layers.
                fetched = weight_bytes > caches.l1 and not dot.in_tiles
                ahead = Ahead.of(panel_bytes, tile, rounds).lines if fetched else 0
                for overlap in (True, False) if dot.in_tiles else (False,):
                    sized = replace(plan, tile=tile, ahead=ahead, overlap=overlap)
                    size = tile_bytes(problem, layer_for(problem, sized), sized)
                    if tile == 1 or (1 + overlap) * size <= caches.l2:
                        yield sized


def _tile_sizes(most: int) -> Iterator[int]:
    """Yields 1, 2, 3, 4, 6, 8, 12, ... and the most."""
    size = 1
    while size < most:
        yield size
        if size > 1 and size * 3 // 2 < most:
            yield size * 3 // 2
        size *= 2
    yield most
