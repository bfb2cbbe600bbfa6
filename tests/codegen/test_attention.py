"""Attention: slices of one tensor, masks, odd sizes, beside forbidden pages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dnnsep.codegen.attention.definition import bound_of_attention, naive_attention
from dnnsep.codegen.attention.special import panels, rows_of_group
from dnnsep.codegen.attention.step import AttentionStep, Strides
from dnnsep.dtypes import DTYPES, Array
from tests.codegen.pieces import JUNK, Memory
from tests.codegen.stepping import NAN, ONS, On, call


@dataclass(frozen=True)
class Case:
    """Sizes; ``mask`` is its images and heads, where there is one. ``apart`` is how many elements
    tokens are further apart than they have to be. Prints itself as a test's id."""

    batch: int
    heads: int
    queries: int
    keys: int
    depth: int
    value_depth: int
    mask: tuple[int, int] | None = None
    apart: int = 0

    def __str__(self) -> str:
        sizes = (self.queries, self.keys, self.depth, self.value_depth)
        mask = f"-mask{self.mask[0]}x{self.mask[1]}" if self.mask else ""
        return f"B{self.batch}-H{self.heads}-{'x'.join(map(str, sizes))}{mask}"


CASES = (
    Case(1, 3, 33, 33, 64, 64),
    Case(2, 2, 16, 16, 24, 24, apart=5),
    Case(3, 2, 49, 49, 32, 32, mask=(3, 1)),
    Case(1, 2, 49, 49, 16, 32, mask=(1, 2)),
    Case(2, 1, 7, 130, 5, 9, mask=(2, 1), apart=3),
    Case(1, 2, 5, 1, 3, 1),
    Case(1, 1, 1, 67, 17, 70, mask=(1, 1)),
    Case(2, 2, 26, 80, 33, 40),
    Case(1, 1, 13, 5, 16, 8, mask=(1, 1)),
)


@dataclass(frozen=True, eq=False)
class Data:
    q: Array
    k: Array
    v: Array
    mask: Array | None

    def named(self) -> list[tuple[str, Array]]:
        return [("q", self.q), ("k", self.k), ("v", self.v)]


def _random(case: Case, dtype: str, size: float = 1.0) -> Data:
    rng = np.random.default_rng(0)

    def some(*shape: int) -> Array:
        return DTYPES[dtype].rounded(size * rng.standard_normal(shape))

    mask = some(*case.mask, case.queries, case.keys) if case.mask else None
    return Data(
        some(case.batch, case.queries, case.heads, case.depth),
        some(case.batch, case.keys, case.heads, case.depth),
        some(case.batch, case.keys, case.heads, case.value_depth),
        mask,
    )


def _strides(tokens: int, heads: int, depth: int, apart: int) -> Strides:
    token = heads * depth + apart
    return Strides(tokens * token + 2 * apart, token, depth)


def _step(case: Case, on: On, scale: float, threads: int = 2) -> AttentionStep:
    sizes = (case.batch, case.heads, case.queries, case.keys, case.depth, case.value_depth)
    mask = None
    if case.mask:
        images, heads = case.mask
        square = case.queries * case.keys
        mask = Strides(heads * square * (images > 1), case.keys, square * (heads > 1))
    q = _strides(case.queries, case.heads, case.depth, case.apart)
    k = _strides(case.keys, case.heads, case.depth, case.apart)
    v = _strides(case.keys, case.heads, case.value_depth, case.apart)
    y = _strides(case.queries, case.heads, case.value_depth, case.apart)
    return AttentionStep(*sizes, scale, q, k, v, y, mask, on.dtype, on.isa, threads)


def _places(shape: tuple[int, ...], strides: Strides) -> NDArray[Any]:
    """Returns where the elements of (B, N, H, D) are."""
    image, token, head, element = np.indices(shape)
    places: NDArray[Any] = (
        image * strides.batch + token * strides.token + head * strides.head + element
    )
    return places


def _laid_out(values: Array, strides: Strides, between: np.float32) -> Array:
    places = _places(values.shape, strides)
    flat = np.full(places.max() + 1, between)
    flat[places] = values
    return flat


def _run(step: AttentionStep, data: Data, at_end: bool = True, team_size: int = 2) -> Array:
    dtype = DTYPES[step.dtype]
    operands = {
        name: Memory(dtype.stored(_laid_out(values, getattr(step, name), NAN)), at_end)
        for name, values in data.named()
    }
    if data.mask is not None:
        operands["mask"] = Memory(dtype.stored(data.mask), at_end)
    shape = (step.batch, step.queries, step.heads, step.value_depth)
    junk = np.full(shape, JUNK)
    y = Memory(dtype.stored(_laid_out(junk, step.y, JUNK)), at_end)
    places = {name: memory.at(0) for name, memory in operands.items()}
    call(step, {**places, "y": y.at(0)}, team_size)
    assert y.untouched
    assert all(memory.unchanged for memory in operands.values())
    found: Array = dtype.loaded(y.array.copy())
    where = _places(shape, step.y)
    result: Array = found[where]
    found[where] = JUNK
    assert (found == JUNK).all()
    return result


@pytest.mark.parametrize("on", ONS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_the_bound(case: Case, on: On) -> None:
    scale = 1.5 * case.depth**-0.5
    data = _random(case, on.dtype)
    right = naive_attention(data.q, data.k, data.v, scale, data.mask)
    bound = bound_of_attention(data.q, data.k, data.v, scale, on.dtype, data.mask)
    assert (bound <= 2e-2).all()
    for at_end in (False, True):
        found = _run(_step(case, on, scale), data, at_end)
        assert (np.abs(found - right) <= bound).all()


@pytest.mark.parametrize("masked", [False, True])
def test_naive_is_what_torch_computes(masked: bool) -> None:
    case = Case(2, 3, 9, 14, 8, 5, mask=(2, 1) if masked else None)
    data = _random(case, "f32")
    q, k, v = (torch.from_numpy(values).transpose(1, 2) for _, values in data.named())
    mask = None if data.mask is None else torch.from_numpy(data.mask)
    y = F.scaled_dot_product_attention(q, k, v, mask, scale=0.3).transpose(1, 2).numpy()
    right = naive_attention(data.q, data.k, data.v, 0.3, data.mask)
    assert np.abs(y - right).max() < 1e-5


@pytest.mark.parametrize("on", ONS, ids=str)
def test_one_key_to_the_bit(on: On) -> None:
    """A mask that leaves a single key: the result is its value."""
    case = Case(2, 2, 23, 37, 8, 20, mask=(2, 2))
    rng = np.random.default_rng(0)
    data = _random(case, on.dtype)
    chosen = rng.integers(0, case.keys, (2, 2, case.queries))
    mask = np.where(np.arange(case.keys) == chosen[..., None], 0, -np.inf).astype(np.float32)
    found = _run(_step(case, on, 0.5), replace(data, mask=mask))
    for image in range(2):
        for head in range(2):
            right = data.v[image, chosen[image, head], head]
            assert (found[image, :, head] == right).all()


@pytest.mark.parametrize("on", ONS, ids=str)
def test_equal_scores_to_the_bit(on: On) -> None:
    """The mean of small integers over a power of 2 of keys."""
    for keys in (4, 16, 128):
        case = Case(1, 2, 11, keys, 7, 21)
        data = _random(case, on.dtype)
        v = np.random.default_rng(0).integers(-8, 9, data.v.shape).astype(np.float32)
        data = Data(np.zeros_like(data.q), data.k, v, None)
        right = v.astype(np.float64).mean(1, keepdims=True)
        found = _run(_step(case, on, 1.0), data)
        assert (found == DTYPES[on.dtype].rounded(right)).all()


def test_large_scores() -> None:
    """The largest of a row's scores is taken from all of them."""
    case = Case(1, 2, 17, 41, 16, 16)
    on = ONS[-1]
    data = _random(case, on.dtype, size=9.0)
    right = naive_attention(data.q, data.k, data.v, 1.0)
    bound = bound_of_attention(data.q, data.k, data.v, 1.0, on.dtype)
    found = _run(_step(case, on, 1.0), data)
    assert (np.abs(found - right) <= bound).all()
    assert np.median(bound) < 0.1


def test_nan_stays_in_its_row() -> None:
    case = Case(1, 1, 14, 20, 8, 8)
    data = _random(case, "f32")
    data.q[0, 3, 0, 2] = np.nan
    found = _run(_step(case, ONS[-1], 1.0), data)
    assert np.isnan(found[0, 3]).all()
    assert not np.isnan(np.delete(found, 3, 1)).any()


def test_any_team_has_the_same_bits() -> None:
    case = Case(2, 3, 53, 40, 16, 16, mask=(1, 3))
    on = ONS[-1]
    data = _random(case, on.dtype)
    right = _run(_step(case, on, 0.2, threads=1), data, team_size=1)
    for threads in range(1, 5):
        for team_size in range(1, 5):
            found = _run(_step(case, on, 0.2, threads), data, team_size=team_size)
            assert found.tobytes() == right.tobytes()


def test_q_k_and_v_are_slices_of_one_result() -> None:
    """As a linear layer leaves them: (B, N, 3 H D)."""
    on, (batch, tokens, heads, depth) = ONS[-1], (2, 19, 3, 24)
    width = heads * depth
    rows = np.random.default_rng(0).standard_normal((batch, tokens, 3 * width)).astype(np.float32)
    q, k, v = (part.reshape(batch, tokens, heads, depth) for part in np.split(rows, 3, axis=2))
    inside = Strides(tokens * 3 * width, 3 * width, depth)
    step = _step(Case(batch, heads, tokens, tokens, depth, depth), on, 0.2)
    step = replace(step, q=inside, k=inside, v=inside)
    x, y = Memory(rows, True), Memory(np.full((batch, tokens, heads, depth), JUNK), True)
    places = {name: x.at(n * width) for n, name in enumerate("qkv")}
    call(step, {**places, "y": y.at(0)})
    assert x.unchanged
    right = naive_attention(q, k, v, 0.2)
    assert (np.abs(y.array - right) <= bound_of_attention(q, k, v, 0.2, "f32")).all()


def test_how_rows_and_keys_are_cut_up() -> None:
    assert [rows_of_group(queries) for queries in (1, 8, 16, 49, 196, 197)] == [4, 4, 4, 5, 6, 6]
    assert panels(13, 4) == {1: 0, 2: 0, 3: 3, 4: 1}
    assert panels(5, 4) == {1: 0, 2: 1, 3: 1, 4: 0}
    for most in (2, 4):
        for vectors in range(1, 40):
            cut = panels(vectors, most)
            assert sum(size * count for size, count in cut.items()) == vectors
            assert sum(cut.values()) == -(-vectors // most)
