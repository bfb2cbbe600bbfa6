"""Row-wise kernels: every operator, kind of operand and length of row, beside forbidden pages."""

from __future__ import annotations

import numpy as np
import pytest

from dnnsep.activations import ACTIVATIONS
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.rowwise.expression import (
    Expression,
    apply,
    channels,
    image,
    layer_norm,
    pixel,
    pixels,
    rms_norm,
    softmax,
)
from dnnsep.codegen.rowwise.operators import OPERATORS
from dnnsep.codegen.rowwise.special import Rowwise
from dnnsep.codegen.rowwise.step import RowwiseStep
from dnnsep.dtypes import DTYPES, Array
from tests.codegen.pieces import Memory
from tests.codegen.rowwise import (
    ONS,
    VECTOR_ISAS,
    On,
    call,
    check,
    integers,
    normals,
    run,
    same_bits,
    step_of,
)

# Long together; what one kernel, rule or operator does is in them, networks of all in other files.
pytestmark = pytest.mark.slow

X = pixels(0)

# Shorter than a vector, whole vectors, tails, written out and in loops; several rows as one or not.
MORE = [pytest.param(count, marks=pytest.mark.slow) for count in (1, 7, 16, 33, 100, 193)]
CHANNELS = (3, 24, 49, 260, *MORE)

EXACT: dict[str, Expression] = {
    "activation": apply("relu", X),
    "sum": X + pixels(1),
    "norm": apply("relu6", X * channels(1) + channels(2)),
    "scale": X * image(1) + pixels(2),
    "mask": apply("maximum", X * pixel(1), -2.0),
    "difference": image(1) - X * channels(2),
    "product": X * 3.0 - channels(1),
    "all kinds": apply("minimum", -(X - image(1)), channels(2) * pixel(3)) + apply("square", X),
    "reductions": X * apply("max", X) - apply("sum", pixels(1) * channels(2)) * pixel(3),
    "levels": apply("relu", X - apply("max", X - apply("sum", apply("relu", X)))),
    "uniform": apply("max", X) + apply("sum", pixel(1) * 2.0),
}

RANDOM: dict[str, Expression] = {
    "layer norm": layer_norm(X, 1e-5) * channels(1) + channels(2),
    "rms norm": rms_norm(X, 1e-6) * channels(1),
    "softmax": softmax(X),
    "gelu": apply("gelu", X * channels(1) + channels(2)),
    "response norm": X * (image(1) / (apply("mean", image(1)) + 1e-6)) * channels(2) + X,
    "kept": apply("silu", X) * apply("sum", apply("silu", X)) + apply("tanh", X * 2.0),
}


@pytest.fixture(params=VECTOR_ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    found: Isa = request.param
    return found


@pytest.mark.parametrize("on", ONS, ids=str)
@pytest.mark.parametrize("count", CHANNELS)
@pytest.mark.parametrize("name", EXACT)
def test_integers_to_the_bit(name: str, count: int, on: On) -> None:
    special = Rowwise(EXACT[name], count, on.dtype, on.isa)
    for at_end, (images, rows, apart) in enumerate(((3, 11, 0), (2, 3, 5))):
        step = step_of(special, images, rows, apart)
        operands = integers(special, images, rows)
        right = DTYPES[on.dtype].rounded(special.naive(operands))
        assert np.array_equal(run(step, operands, bool(at_end)), right)


@pytest.mark.parametrize("on", ONS, ids=str)
@pytest.mark.parametrize("count", CHANNELS)
@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers(name: str, count: int, on: On) -> None:
    special = Rowwise(RANDOM[name], count, on.dtype, on.isa)
    for at_end, (images, rows, apart) in enumerate(((3, 2, 3), (2, 21, 0))):
        operands = normals(special, images, rows)
        if name == "response norm":
            operands[1] = np.abs(operands[1])
        check(special, step_of(special, images, rows, apart), operands, bool(at_end))


@pytest.mark.parametrize("on", ONS, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, on: On) -> None:
    """Over many magnitudes; a divisor, and what a root is taken of, is not near 0."""
    arity = OPERATORS[name].arity
    special = Rowwise(apply(name, *map(pixels, range(arity))), 50, on.dtype, on.isa)
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.uniform(-6, 1.5, (arity, 1, 200, 50))
    signs = 1 if name in ("sqrt", "rsqrt") else rng.choice([-1, 1], size.shape)
    operands = list(DTYPES[on.dtype].rounded(size * signs))
    check(special, step_of(special, 1, 200), operands, at_end=True)


def test_operands_of_another_dtype(isa: Isa) -> None:
    """The constants of a norm in f32 where the tensors are bf16."""
    for count in (24, 260):
        expression = X * channels(1, "f32") + image(2, "f32") * pixel(3, "f32")
        special = Rowwise(expression, count, "bf16", isa)
        operands = normals(special, 2, 9)
        assert operands[1].tobytes() != DTYPES["bf16"].rounded(operands[1]).tobytes()
        check(special, step_of(special, 2, 9), operands, at_end=True)


@pytest.mark.parametrize("name", [*EXACT, *RANDOM])
def test_any_team_gives_the_same_bits(name: str, isa: Isa) -> None:
    expression = {**EXACT, **RANDOM}[name]
    for count in (24, 260):
        special = Rowwise(expression, count, "f32", isa)
        operands = normals(special, 3, 101)
        steps = [step_of(special, 3, 101, 0, threads) for threads in (1, 2, 3, 7)]
        assert max(step.parts for step in steps) > 2
        first, *others = (run(step, operands, team_size=2) for step in steps)
        others += [run(steps[2], operands, team_size=size) for size in (1, 3)]
        assert all(same_bits(first, other) for other in others)


def test_rows_apart_give_the_same_bits(isa: Isa) -> None:
    """Whether several rows are computed as one or not."""
    special = Rowwise(RANDOM["gelu"], 24, "f32", isa)
    assert special.together > 1
    operands = normals(special, 1, 40)
    apart, dense = (run(step_of(special, 1, 40, space), operands) for space in (8, 0))
    assert same_bits(apart, dense)


@pytest.mark.parametrize("pitches", [(24, 24, 24), (25, 24, 24), (24, 25, 24), (24, 24, 25)])
def test_one_tensor_with_rows_apart(pitches: tuple[int, int, int], isa: Isa) -> None:
    special = Rowwise(X + pixels(1), 24, "f32", isa)
    operands = integers(special, 1, 20)
    step = RowwiseStep(special, 1, 20, pitches[:2], pitches[2], 2)
    assert np.array_equal(run(step, operands), operands[0] + operands[1])


@pytest.mark.parametrize("count", [5, 16, 260])
@pytest.mark.parametrize("name", ["norm", "layer norm", "softmax", "kept"])
def test_in_place(name: str, count: int, isa: Isa) -> None:
    special = Rowwise({**EXACT, **RANDOM}[name], count, "f32", isa)
    step, operands = step_of(special, 1, 70), normals(special, 1, 70)
    right = run(step, operands)
    memories = [Memory(values, True) for values in operands]
    call(step, [memory.at(0) for memory in memories], memories[0].at(0))
    assert same_bits(memories[0].array, right)


def _special_numbers(arity: int) -> list[Array]:
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 3e38, -3e38], np.float32)
    pairs = np.meshgrid(*[values] * arity, indexing="ij")
    return [pair.reshape(1, 1, -1) for pair in pairs]


@pytest.mark.parametrize("name", sorted({*OPERATORS} - {*ACTIVATIONS}))
def test_nan_and_infinity(name: str, isa: Isa) -> None:
    arity = OPERATORS[name].arity
    operands = _special_numbers(arity)
    special = Rowwise(apply(name, *map(pixels, range(arity))), operands[0].size, "f32", isa)
    found = run(step_of(special, 1, 1), operands)
    with np.errstate(all="ignore"):
        right = special.naive(operands).astype(np.float32)
    assert np.array_equal(np.isnan(found), np.isnan(right))
    there = ~np.isnan(right)
    assert np.allclose(found[there], right[there], rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", [5, 49, 260])
@pytest.mark.parametrize("name", ["max", "sum", "mean"])
def test_nan_in_a_row(name: str, count: int, isa: Isa) -> None:
    """Wherever it is; and infinity is one of the numbers."""
    x = np.random.default_rng(0).standard_normal((1, count + 3, count)).astype(np.float32)
    for channel in range(count):
        x[0, channel, channel] = np.nan
    x[0, count], x[0, count + 1], x[0, count + 2, -1] = -np.inf, np.inf, -np.inf
    special = Rowwise(apply(name, X), count, "f32", isa)
    found = run(step_of(special, 1, count + 3), [x])[0, :, 0]
    assert np.isnan(found[:count]).all()
    assert np.array_equal(found[count : count + 2], np.array([-np.inf, np.inf], np.float32))
    assert found[-1] == (-np.inf if name != "max" else x[0, -1].max())


def test_softmax_of_large_numbers(isa: Isa) -> None:
    """Exponents of any size, and channels that are switched off."""
    x = np.array([[[1e30, 0, -1e30, 1e30], [-np.inf, 80, 0, 79.5]]], np.float32)
    special = Rowwise(softmax(X), 4, "f32", isa)
    found = run(step_of(special, 1, 2), [x])
    power = np.exp(-0.5)
    right = [[[0.5, 0, 0, 0.5], [0, 1 / (1 + power), 0, power / (1 + power)]]]
    assert np.allclose(found, right, rtol=1e-6, atol=1e-30)
    assert (found[0, 1, :1] == 0).all()


def test_parts_are_worth_a_thread(isa: Isa) -> None:
    special = Rowwise(X + pixels(1), 64, "f32", isa)
    assert step_of(special, 1, 10, threads=8).parts == 1
    assert step_of(special, 1, 100, threads=8).parts == 100 * 64 * 3 * 4 // (16 * 1024)
    assert step_of(special, 1, 10_000, threads=8).parts == 8
    assert step_of(special, 1, 100).bytes == 100 * 64 * 3 * 4


@pytest.mark.parametrize("pitch", [63, 0])
def test_rows_that_overlap_are_refused(pitch: int, isa: Isa) -> None:
    special = Rowwise(X + channels(1), 64, "f32", isa)
    with pytest.raises(ValueError, match=f"pitch {pitch}"):
        RowwiseStep(special, 1, 1, (pitch, 0), 64, 1)
    with pytest.raises(ValueError, match=f"pitch {pitch}"):
        RowwiseStep(special, 1, 1, (64, 0), pitch, 1)
    with pytest.raises(ValueError, match="pitch for each operand"):
        RowwiseStep(special, 1, 1, (64,), 64, 1)
    with pytest.raises(ValueError, match="at least 1"):
        RowwiseStep(special, 1, 0, (64, 0), 64, 1)
