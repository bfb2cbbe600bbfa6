"""Strided copies: every kind of plane, beside forbidden pages; only what is owned is written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, permutations
from math import prod

import numpy as np
import pytest
from numpy.typing import NDArray

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.windows.copying import merged, naive_copy
from dnnsep.codegen.windows.copystep import CopyStep
from tests.codegen.pieces import Memory
from tests.codegen.stepping import ONS, call

ISAS = tuple(dict.fromkeys(on.isa for on in ONS if on.dtype == "f32"))


@pytest.fixture(params=ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    found: Isa = request.param
    return found


@dataclass(frozen=True)
class Case:
    """A copy; ``x`` and ``y`` are the strides."""

    sizes: tuple[int, ...]
    x: tuple[int, ...]
    y: tuple[int, ...]

    def step(self, isa: Isa, element_bytes: int = 4, threads: int = 2) -> CopyStep:
        return CopyStep(self.sizes, self.x, self.y, element_bytes, isa, threads)


def dense(sizes: tuple[int, ...], order: tuple[int, ...], pad: int = 0) -> tuple[int, ...]:
    """Returns the strides of dimensions that lie one in another in an order, outermost first; each
    but the innermost is ``pad`` elements further apart than it has to be."""
    strides = [0] * len(sizes)
    apart = 1
    for place in reversed(order):
        strides[place] = apart
        apart = apart * sizes[place] + pad
    return tuple(strides)


def window(side: int, size: int, channels: int) -> Case:
    """Returns a partition of an image into windows."""
    count = side // size
    sizes = (count, count, size, size, channels)
    return Case(sizes, dense(sizes, (0, 2, 1, 3, 4)), dense(sizes, (0, 1, 2, 3, 4)))


def shuffled(pixels: int, groups: int, channels: int, pad: int = 0) -> Case:
    """Returns a shuffle of channels in groups."""
    sizes = (pixels, groups, channels)
    return Case(sizes, dense(sizes, (0, 1, 2), pad), dense(sizes, (0, 2, 1)))


def transpose(rows: int, columns: int, x_pad: int = 0, y_pad: int = 0) -> Case:
    sizes = (3, rows, columns)
    return Case(sizes, dense(sizes, (0, 1, 2), x_pad), dense(sizes, (0, 2, 1), y_pad))


CASES = {
    "window": (window(14, 7, 5), "rows"),
    "window of few": (window(6, 3, 1), "rows"),
    "concat": (Case((37, 40), (40, 1), (101, 1)), "rows"),
    "one row": (Case((9000,), (1,), (1,)), "rows"),
    "one element": (Case((1, 1), (7, 3), (5, 1)), "rows"),
    "six dimensions": (
        Case((2, 3, 2, 3, 2, 19), (999, 200, 99, 33, 7, 1), (1, 2, 6, 12, 36, 72)),
        "tiles",
    ),
    "transpose": (transpose(49, 70), "tiles"),
    "transpose apart": (transpose(33, 131, 3, 5), "tiles"),
    "transpose few rows": (transpose(5, 40), "tiles"),
    "transpose few columns": (transpose(40, 7, 2), "tiles"),
    "transpose few": (transpose(6, 5), "tiles"),
    "zip of 2": (shuffled(29, 2, 58), "zip"),
    "zip of 3 long": (shuffled(1, 3, 5000), "zip"),
    "zip of 4": (shuffled(5, 4, 33, 3), "zip"),
    "zip of few": (shuffled(29, 3, 5), "tiles"),
    "zip of 6": (shuffled(29, 6, 20), "tiles"),
    "unzip of 2": (Case((3, 2, 50), (100, 1, 2), (151, 50, 1)), "unzip"),
    "unzip of 3 long": (Case((3, 5000), (1, 3), (5001, 1)), "unzip"),
    "unzip of 4": (Case((7, 4, 32), (128, 1, 4), (129, 32, 1)), "unzip"),
    "steps": (Case((5, 30), (61, 2), (31, 1)), "elements"),
    "steps written": (Case((50, 30), (30, 1), (91, 3)), "elements"),
    "repeated": (Case((50, 30), (1, 0), (30, 1)), "tiles"),
    "overlapping": (Case((9, 40), (1, 1), (40, 1)), "rows"),
}


def _run(step: CopyStep, at_end: bool, team_size: int = 2) -> NDArray[np.uint8]:
    """Returns what is written; asserts that it is right and all of it."""
    kind = np.dtype(f"u{step.element_bytes}")
    reach = [
        1 + sum((size - 1) * stride for size, stride in zip(step.sizes, strides, strict=True))
        for strides in (step.x_strides, step.y_strides)
    ]
    values = np.random.default_rng(0).integers(0, 1 << 16, reach[0]).astype(kind)
    x = Memory(values, at_end)
    right = np.full(reach[1], 0xAB, kind)
    y = Memory(right, at_end)
    naive_copy(values, right, step.sizes, step.x_strides, step.y_strides)
    call(step, {"x": x.at(0), "y": y.at(0)}, team_size)
    assert y.untouched
    assert x.unchanged
    assert (y.array == right).all()
    return y.array.copy().view(np.uint8)


@pytest.mark.parametrize("element_bytes", [4, 2, 1])
@pytest.mark.parametrize("name", CASES)
def test_copies(name: str, element_bytes: int, isa: Isa) -> None:
    case, kind = CASES[name]
    step = case.step(isa, element_bytes)
    if element_bytes == 4 and isa.lanes == 16:  # longer vectors have more that does not fill one
        assert step.layout.kind == kind
    for at_end in (False, True):
        _run(step, at_end)


def test_any_order_of_dimensions(isa: Isa) -> None:
    rng = np.random.default_rng(2)
    for order in permutations(range(4)):
        sizes = tuple(int(size) for size in rng.integers(1, 24, 4))
        pad = int(rng.integers(0, 2))
        case = Case(sizes, dense(sizes, order, pad), dense(sizes, (0, 1, 2, 3), 1 - pad))
        _run(case.step(isa, threads=3), bool(pad), 3)


def test_any_team_copies_all(isa: Isa) -> None:
    for name in ("window", "transpose", "zip of 3 long", "unzip of 3 long", "one row"):
        for threads in range(1, 5):
            for team_size in range(1, 5):
                _run(CASES[name][0].step(isa, threads=threads), True, team_size)


def test_dimensions_are_merged() -> None:
    sizes = (2, 3, 4, 5)
    packed = dense(sizes, (0, 1, 2, 3))
    assert [one.size for one in merged(sizes, packed, packed)] == [prod(sizes)]
    assert packed == tuple(list(accumulate((5, 4, 3), lambda a, b: a * b, initial=1))[::-1])
    (first, second) = merged(sizes, packed, (300, 100, 5, 1))
    assert (first.size, first.x, first.y) == (6, 20, 100)
    assert (second.size, second.x, second.y) == (20, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "x", "y", "message"),
    [
        ((2, 0), (1, 1), (1, 2), "at least 1"),
        ((2, 3), (3, -1), (3, 1), "forwards"),
        ((2, 3), (3, 1), (0, 1), "forwards"),
        ((2, 3), (3,), (3, 1), "not as many"),
        ((2,) * 7, (1,) * 7, (64, 32, 16, 8, 4, 2, 1), "more than 6"),
    ],
)
def test_what_is_no_copy_is_refused(
    sizes: tuple[int, ...], x: tuple[int, ...], y: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        merged(sizes, x, y)
