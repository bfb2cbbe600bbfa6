"""Products of an ordinary convolution leave out taps outside the image, and no others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import PLAIN
from dnnsep.codegen.lang.emit import I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa, this_isa
from dnnsep.codegen.layer import Layer, layer_of
from dnnsep.codegen.places import Places
from dnnsep.codegen.plan import Plan, by_rows, met_columns
from dnnsep.codegen.stages.matmul import Met
from dnnsep.codegen.weigh import Caches, all_plans, cost
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from tests.codegen.guarded import Inputs, run_guarded
from tests.codegen.pieces import Memory, function_of, kernel_rows

CACHES = Caches(48 * 1024, 1 << 20, 32 << 20)


def _plans(problem: Problem, isa: Isa) -> list[Plan]:
    """Returns plans with pieces of all sorts that the problem has."""
    found: dict[tuple[int, int], Plan] = {}
    for threads in (1, 2, 3):
        for plan in all_plans(problem, isa, threads, CACHES):
            found.setdefault((plan.pieces, plan.pixel_parts), plan)
    return list(found.values())


def test_segments() -> None:
    all_three, none = range(3), range(0, 0)
    assert Met(3, 4, (all_three,) * 5).segments() == [(range(3), range(5))]
    assert Met(3, 4, (range(1, 3), all_three, range(2))).segments() == [
        (range(1), range(1, 3)),
        (range(1, 2), range(3)),
        (range(2, 3), range(2)),
    ]
    assert Met(2, 4, (none, range(1), none)).segments() == [(range(1), range(1, 2))]
    assert Met(2, 4, (none, none)).segments() == []
    # Of two rows of pixels what is between them is taken too.
    two = (range(1, 3), range(2), range(1, 3), range(2))
    assert Met(3, 4, two).segments() == [
        (range(1), range(1, 4)),
        (range(1, 2), range(4)),
        (range(2, 3), range(3)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "g1mb3ic8oc16ih7kh3ph1",
        "g1mb3ic8oc16ih5iw9kh3ph3dh2",
        "g1mb2ic8oc16ih6iw40kh3ph1sh2",
        "g1mb2ic8oc16ih3iw4kh2ph4",
    ],
)
def test_the_rows_of_a_piece(text: str) -> None:
    """All those that any of its pixels meets, and of pieces within an image's rows no others."""
    problem, isa = Problem.parse(text), this_isa()
    layer = layer_of(problem, isa)
    for plan in _plans(problem, isa):

        def body(code: Code, plan: Plan = plan, layer: Layer = layer) -> None:
            place = Places(code, layer, Extent.of(problem), plan, PLAIN.pitches(layer))
            rows = place.met_rows(code.arguments[0])
            for n, row in enumerate(rows):
                code.store(row, code.at(code.arguments[1], n, I64))

        function = function_of(isa, [I64, POINTER], body)
        found = Memory(np.zeros(2, np.int64), at_end=True)
        for piece in range(plan.pieces):
            function(piece, found.at(0))
            if plan.short_rows:
                first, last = (piece + n for n in range(2))
                pixels = range(*(n * problem.out_pixels // plan.pieces for n in (first, last)))
                rows = sorted({pixel // problem.out_width for pixel in pixels})
            else:
                rows = [piece // len(plan.rows)]
            met = [
                kernel_rows(layer.window, row % problem.out_height, problem.height) for row in rows
            ]
            needed = [taps for taps in met if taps[0] < taps[1]]
            begin, end = found.array
            assert all(begin <= start and stop <= end for start, stop in needed)
            if rows[0] // problem.out_height == rows[-1] // problem.out_height and needed:
                assert begin == min(start for start, _ in needed)
                assert end == max(stop for _, stop in needed)


def test_pieces_of_whole_rows(isa: Isa) -> None:
    problem = Problem.parse("g1ic64oc64ih7kh3ph1")
    plans = _plans(problem, isa)
    layer = layer_of(problem, isa)
    whole = {plan.whole_rows(problem.out_pixels) for plan in plans}
    assert whole == ({0, 1} if layer.dot.pixels(isa, 2) >= 7 else {0})
    for plan in plans:
        columns = met_columns(layer.window, plan, problem.width, problem.out_pixels)
        if plan.whole_rows(problem.out_pixels):
            assert columns == [(range(1, 3), *[range(3)] * 5, range(2))]
        else:
            assert columns is None
    # As many rows as the registers hold pixels of and as share out evenly.
    batch = replace(problem, batch=2)
    plan = next(all_plans(batch, isa, 1, CACHES))
    assert by_rows(batch, plan, 14).whole_rows(batch.out_pixels) == 2
    assert by_rows(batch, plan, 13).whole_rows(batch.out_pixels) == 1
    assert by_rows(batch, plan, 6) == plan


def test_what_is_left_out_costs_nothing(isa: Isa) -> None:
    """By the model: rows and columns of a kernel that meet two rows and columns of the image."""
    near, far = (Problem.parse(f"g1ic64oc64ih14kh3ph{d}dh{d - 1}") for d in (1, 12))

    def least(problem: Problem) -> float:
        plans = all_plans(problem, isa, 1, CACHES)
        return min(cost(problem, plan, CACHES).pointwise for plan in plans)

    if layer_of(near, isa).dot.pixels(isa, 2) >= 14:
        assert least(far) / least(near) == pytest.approx((18 / 40) ** 2, rel=0.01)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_what_is_outside_the_image_is_not_multiplied(dtype: str, isa: Isa) -> None:
    """By weights that are infinite, whose product by a zero would be no number: of the corner of a
    kernel that meets the image at all pixels but those of the first row and column."""
    problem = Problem.parse(f"g1ic16oc32ih5iw20kh3kw3ph1pw1_{dtype}")
    data = CheckData.exact(problem)
    assert data.weights.pointwise is not None
    data.weights.pointwise[:, :, 0, 0] = np.inf
    x = np.abs(data.x) + 1
    for plan in _plans(problem, isa):
        if not layer_of(problem, isa).skips_taps or plan.short_rows:
            continue
        found = run_guarded(problem, plan, Inputs(replace(data, x=x)), at_end=True)
        assert np.isfinite(found[:, :, 0]).all()
        assert np.isfinite(found[:, :, :, 0]).all()
        assert np.isinf(found[:, :, 1:, 1:]).all()
