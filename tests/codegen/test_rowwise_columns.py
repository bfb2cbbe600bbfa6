"""Reductions of an image's pixels: blocks of channels, tails, few and many pixels."""

from __future__ import annotations

import numpy as np
import pytest

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.rowwise.expression import Expression, apply, channels, pixels
from dnnsep.codegen.rowwise.special import PixelReduction
from dnnsep.codegen.rowwise.step import PixelReductionStep
from dnnsep.dtypes import DTYPES, Array
from tests.codegen.pieces import JUNK, Memory
from tests.codegen.rowwise import ONS, VECTOR_ISAS, On, call, rows_of, same_bits, spaced

# Long together; what one kernel, rule or operator does is in them, networks of all in other files.
pytestmark = pytest.mark.slow

X = pixels(0)
CHANNELS = (1, 16, 33, 100)


@pytest.fixture(params=VECTOR_ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    found: Isa = request.param
    return found


def _step(
    special: PixelReduction, images: int, count: int, apart: int = 0, threads: int = 2
) -> PixelReductionStep:
    pitches = (special.channels + apart, special.channels + 2 * apart)
    return PixelReductionStep(special, images, count, *pitches, threads)


def _run(step: PixelReductionStep, x: Array, at_end: bool = True, team_size: int = 2) -> Array:
    """Returns the result, (N, C), of x, (N, P, C); nothing else was written than that."""
    special, dtype = step.special, DTYPES[step.special.dtype]
    rows = spaced(x.reshape(-1, special.channels), step.pitch, np.float32(np.nan))
    given = Memory(dtype.stored(rows), at_end)
    y = spaced(np.full((step.images, special.channels), JUNK), step.y_pitch, JUNK)
    result = Memory(dtype.stored(y), at_end)
    call(step, [given.at(0)], result.at(0), team_size)
    assert result.untouched
    assert given.unchanged
    return rows_of(dtype.loaded(result.array), step.y_pitch, special.channels)


def _integers(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize("on", ONS, ids=str)
@pytest.mark.parametrize("count", CHANNELS)
@pytest.mark.parametrize("name", ["sum", "mean", "max"])
def test_integers_to_the_bit(name: str, count: int, on: On) -> None:
    """The mean of a power of two of pixels is a number of f32."""
    special = PixelReduction(X * 2.0 - 1.0, name, count, on.dtype, on.isa)
    for at_end, (images, rows, apart) in enumerate(((1, 1, 0), (3, 16, 5), (2, 13, 0))):
        if name == "mean" and rows == 13:
            continue
        x = _integers((images, rows, count))
        right = DTYPES[on.dtype].rounded(special.naive(x))
        assert np.array_equal(_run(_step(special, images, rows, apart), x, bool(at_end)), right)


@pytest.mark.parametrize("on", ONS, ids=str)
@pytest.mark.parametrize("count", CHANNELS)
def test_random_numbers(count: int, on: On) -> None:
    """The norm of each channel, and a pooled activation."""
    cases: list[tuple[Expression, str, Expression]] = [
        (apply("square", X), "sum", apply("sqrt", X)),
        (apply("silu", X), "mean", apply("sigmoid", X * 2.0)),
        (apply("gelu", X), "max", X),
    ]
    for before, name, after in cases:
        special = PixelReduction(before, name, count, on.dtype, on.isa, after)
        for images, rows, apart in ((2, 49, 3), (1, 5, 0)):
            x = DTYPES[on.dtype].rounded(
                np.random.default_rng(0).standard_normal((images, rows, count))
            )
            error = np.abs(_run(_step(special, images, rows, apart), x) - special.naive(x))
            bound = special.bound(x)
            assert np.isfinite(bound).all()
            assert (error <= bound).all()


@pytest.mark.parametrize("count", [3, 200])
def test_any_team_gives_the_same_bits(count: int, isa: Isa) -> None:
    special = PixelReduction(apply("square", X), "mean", count, "f32", isa)
    x = np.random.default_rng(0).standard_normal((3, 300, count)).astype(np.float32)
    steps = [_step(special, 3, 300, 0, threads) for threads in (1, 2, 3, 7)]
    first, *others = (_run(step, x) for step in steps)
    others += [_run(steps[2], x, team_size=size) for size in (1, 3, 4)]
    assert all(same_bits(first, other) for other in others)


def test_nan_and_infinity(isa: Isa) -> None:
    x = np.ones((1, 20, 20), np.float32)
    for pixel in range(20):
        x[0, pixel, pixel] = np.nan
    special = PixelReduction(X, "max", 20, "f32", isa)
    assert np.isnan(_run(_step(special, 1, 20), x)).all()
    x[np.isnan(x)] = np.inf
    assert (_run(_step(special, 1, 20), x) == np.inf).all()
    assert (_run(_step(special, 1, 20), -np.abs(x)) == -1).all()


def test_what_is_no_reduction_is_refused(isa: Isa) -> None:
    with pytest.raises(ValueError, match="reduction 'min'"):
        PixelReduction(X, "min", 3, "f32", isa)
    with pytest.raises(ValueError, match="channels 0"):
        PixelReduction(X, "sum", 0, "f32", isa)
    with pytest.raises(ValueError, match="dtype 'f16'"):
        PixelReduction(X, "sum", 3, "f16", isa)
    for other in (X * channels(1), apply("sum", X), channels(0)):
        with pytest.raises(ValueError, match="pixels\\(0\\) alone"):
            PixelReduction(other, "sum", 3, "f32", isa)
    with pytest.raises(ValueError, match="pitch 2"):
        PixelReductionStep(PixelReduction(X, "sum", 3, "f32", isa), 1, 1, 2, 3, 1)
