"""Attention kernels: every layout and odd size, beside forbidden pages, by teams of any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dnnsep.codegen.heads.special import Heads
from dnnsep.codegen.heads.step import HeadsStep
from dnnsep.codegen.heads.task import Strides
from dnnsep.codegen.lang.isa import Isa
from dnnsep.dtypes import DTYPES, Array
from tests.codegen.heads import Given, normals, run
from tests.codegen.rowwise import VECTOR_ISAS, same_bits

# Long together; what one kernel, rule or operator does is in them, networks of all in other files.
pytestmark = pytest.mark.slow

# Depth of queries and keys, and of values.
DEPTHS = ((64, 64), (32, 32), (16, 32), (24, 24), (5, 3), (8, 70), (1, 1), (48, 80))

# Batch, heads, queries, keys: blocks of two sizes, all in one kernel, by fewer keys than a vector
# has lanes, by whole vectors, and by more.
SIZES = ((2, 3, 17, 19), (1, 2, 17, 64), (2, 1, 17, 1))
# Fewer queries than a block has, whole blocks, and more.
QUERIES = (1, 3, 40, 49, 57)


@pytest.fixture(params=VECTOR_ISAS, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    found: Isa = request.param
    return found


def _check(special: Heads, given: Given, at_end: bool = True, apart: int = 0) -> Array:
    """Returns the result, which is within its bound."""
    found = run(special, given, at_end, apart=apart)
    error, bound = np.abs(found - special.naive(*given.all)), special.bound(*given.all)
    assert np.isfinite(bound).all()
    assert (error <= bound).all(), f"{(error / bound).max():.2f} of the bound"
    return found


@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("letters", ["", "qkvy"])
def test_queries(letters: str, queries: int, isa: Isa) -> None:
    special = Heads(16, 32, "f32", isa, 1, **_transposed(letters))
    for number, keys in enumerate((1, 49)):
        _check(special, normals(2, 2, queries, keys, special), bool(number % 2), apart=number)


def _transposed(letters: str) -> dict[str, bool]:
    return {f"{letter}_transposed": True for letter in letters}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depths", DEPTHS, ids=str)
def test_random_numbers(depths: tuple[int, int], dtype: str, isa: Isa) -> None:
    special = Heads(*depths, dtype, isa)
    for number, sizes in enumerate(SIZES):
        _check(special, normals(*sizes, special), bool(number % 2), apart=number)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("letters", ["k", "q", "v", "y", "qkvy"])
def test_transposed(letters: str, dtype: str, isa: Isa) -> None:
    special = Heads(7, 21, dtype, isa, 0, **_transposed(letters))
    for number, sizes in enumerate(SIZES):
        _check(special, normals(*sizes, special), bool(number % 2), apart=number)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biases", [1, 2])
def test_biases(biases: int, dtype: str, isa: Isa) -> None:
    special = Heads(32, 32, dtype, isa, biases, k_transposed=biases == 2)
    for number, sizes in enumerate(SIZES):
        _check(special, normals(*sizes, special), bool(number % 2), apart=number)


def test_biases_for_all_queries_and_heads(isa: Isa) -> None:
    special = Heads(16, 16, "f32", isa, 2)
    given = normals(2, 3, 11, 37, special)
    biases = (given.biases[0][:, :1], given.biases[1][:, :, :1])
    _check(special, replace(given, biases=biases, scale=-0.75))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_equal_scores_to_the_bit(transposed: bool, dtype: str, isa: Isa) -> None:
    """Where all of a power of two of keys are the same, the result is the values' mean."""
    letters = _transposed("qkvy" if transposed else "")
    special = Heads(24, 40, dtype, isa, **letters)
    given = normals(2, 3, 21, 32, special)
    v = np.random.default_rng(0).integers(-4, 5, given.v.shape).astype(np.float32)
    given = replace(given, k=np.repeat(given.k[:, :, :1], 32, axis=2), v=v)
    mean = np.broadcast_to(v.mean(2, keepdims=True), (2, 3, 21, 40))
    assert np.array_equal(run(special, given, apart=2), mean)


def test_one_key_counts(isa: Isa) -> None:
    """A mask leaves one key to each query: its values are the result, to the bit."""
    special = Heads(16, 16, "f32", isa, 1)
    given = normals(2, 2, 37, 37, special)
    chosen = np.random.default_rng(0).permutation(37)
    mask = np.full((1, 1, 37, 37), -np.inf, np.float32)
    mask[0, 0, np.arange(37), chosen] = 0.0
    assert np.array_equal(run(special, replace(given, biases=(mask,))), given.v[:, :, chosen])


def test_large_scores(isa: Isa) -> None:
    """Scores up to some thousands, of both signs, whose exponentials are beyond any number."""
    special = Heads(32, 32, "f32", isa, 1)
    given = normals(1, 2, 21, 50, special, size=30.0)
    found = run(special, given)
    right, bound = special.naive(*given.all), special.bound(*given.all)
    assert np.isfinite(found).all()
    assert (np.abs(found - right) <= bound).all()
    assert (bound < 10).mean() > 0.5
    # Where the exponents of all keys are much the same, it is 1 that is large.
    large = replace(
        given,
        q=given.q / np.float32(30),
        k=given.k / np.float32(30),
        biases=(given.biases[0] * 0 + 3e4,),
    )
    assert np.allclose(run(special, large), special.naive(*large.all), rtol=0.1, atol=1)
    negative = replace(large, biases=(-large.biases[0],))
    assert np.allclose(run(special, negative), special.naive(*negative.all), rtol=0.1, atol=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_rows_and_nan(dtype: str, isa: Isa) -> None:
    special = Heads(8, 20, dtype, isa, 2)
    given = normals(2, 2, 11, 21, special)
    mask = np.zeros((2, 1, 11, 21), np.float32)
    mask[0, 0, 2:5, 7:] = -np.inf
    mask[0, 0, 4], mask[1, 0, 10] = -np.inf, -np.inf
    given.q[1, 0, 3, 5] = np.nan
    given = replace(given, biases=(given.biases[0], mask))
    found, right = run(special, given), special.naive(*given.all)
    assert np.isnan(right[0, :, 4]).all()
    assert np.isnan(right[1, 0, 3]).all()
    assert np.array_equal(np.isnan(found), np.isnan(right))
    there = ~np.isnan(right)
    assert (np.abs(found - right) <= special.bound(*given.all))[there].all()
    given.v[1, 1, 20, 3] = np.nan
    found = run(special, given)
    assert np.isnan(found[1, 1, :, 3]).all()
    assert not np.isnan(found[1, 1, :10, [0, 1, 2, 4]]).any()


@pytest.mark.parametrize("sizes", [(1, 3, 197, 64), (5, 2, 20, 80), (1, 1, 700, 33)], ids=str)
def test_any_team_gives_the_same_bits(sizes: tuple[int, int, int, int], isa: Isa) -> None:
    special = Heads(40, 40, "f32", isa, 1)
    given = normals(*sizes, special)
    first, *others = (run(special, given, threads=n, team_size=n) for n in (1, 2, 3, 4))
    others += [run(special, given, threads=3, team_size=n) for n in (1, 2, 4)]
    assert all(same_bits(first, other) for other in others)


def test_work_is_shared() -> None:
    dense = Strides(1, 1, 1)

    def parts(batch: int, queries: int, keys: int, threads: int) -> int:
        special = Heads(32, 32, "f32", VECTOR_ISAS[0])
        return HeadsStep(
            special, batch, 1, queries, keys, 1.0, dense, dense, dense, dense, threads
        ).parts

    assert parts(64, 49, 49, 4) == 4
    assert parts(1, 1024, 1024, 4) == 4
    assert parts(1, 1, 1, 4) == 1
    assert parts(1, 1, 100000, 4) == 1


def test_what_is_no_attention_is_refused(isa: Isa) -> None:
    with pytest.raises(ValueError, match="depths 0, 3"):
        Heads(0, 3, "f32", isa)
    with pytest.raises(ValueError, match="dtype 'f16'"):
        Heads(3, 3, "f16", isa)
    with pytest.raises(ValueError, match="biases 3"):
        Heads(3, 3, "f32", isa, 3)
    dense, special = Strides(1, 1, 1), Heads(3, 3, "f32", isa, 1)
    with pytest.raises(ValueError, match="at least 1"):
        HeadsStep(special, 1, 0, 1, 1, 1.0, dense, dense, dense, dense, 1, (dense,))
    with pytest.raises(ValueError, match="strides of 1 biases"):
        HeadsStep(special, 1, 1, 1, 1, 1.0, dense, dense, dense, dense, 1)
