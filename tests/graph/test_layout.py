"""How tensors lie in memory: what is said of it, against the addresses of all elements."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dnnsep.graph import layout
from dnnsep.graph.reductions import pixel_rows, reduced

_SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def tensors(draw: st.DrawFn, size: tuple[int, ...] | None = None) -> Tensor:
    """Draws a tensor that lies in memory in any order, maybe a slice of a larger one, maybe with
    dimensions that are only repeated."""
    size = tuple(draw(_SIZES)) if size is None else size
    room = [n + draw(st.sampled_from([0, 0, 0, 1, 3])) for n in size]
    order = draw(st.permutations(range(len(size))))
    strides, step = [0] * len(size), 1
    for d in reversed(order):
        strides[d] = step
        step *= room[d]
    if draw(st.integers(0, 5)) == 0:
        strides[draw(st.integers(0, len(size) - 1))] = 0
    offset = draw(st.sampled_from([0, 0, 5]))
    memory = torch.empty(step + offset, device="meta")
    return memory.as_strided(size, strides, offset)


def _addresses(like: Tensor) -> dict[tuple[int, ...], int]:
    """Returns of each element, by its index, where it is in its buffer."""
    return {
        index: int(like.storage_offset())
        + sum(i * s for i, s in zip(index, like.stride(), strict=True))
        for index in product(*map(range, like.shape))
    }


@given(_SIZES, st.data())
def test_dense_tensors_have_no_gaps(size: list[int], data: st.DataObject) -> None:
    minor = data.draw(st.integers(-len(size), len(size) - 1))
    like = layout.dense(size, minor, torch.float32)
    assert tuple(like.shape) == tuple(size)
    assert like.is_meta
    assert sorted(_addresses(like).values()) == list(range(prod(size)))
    others = [d for d in range(len(size)) if d != minor % len(size)]
    order = [*others, minor % len(size)]
    expected = torch.empty([size[d] for d in order]).stride()
    assert [like.stride(d) for d in order if size[d] > 1] == [
        step for d, step in zip(order, expected, strict=True) if size[d] > 1
    ]


def test_images_are_channels_last() -> None:
    like = layout.images((2, 8, 10, 9), torch.bfloat16)
    assert like.is_contiguous(memory_format=torch.channels_last)
    assert like.dtype is torch.bfloat16
    assert layout.dense((), -1, torch.float32).shape == ()


@given(tensors(), st.data())
def test_rows_are_where_they_are_said_to_be(like: Tensor, data: st.DataObject) -> None:
    dim = data.draw(st.integers(-like.dim(), like.dim() - 1))
    rows = layout.rows_of(like, dim)
    expected = {}
    if rows is None:
        return
    dim %= like.dim()
    others = [d for d in range(like.dim()) if d != dim]
    pixel = 0
    for index in product(*(range(like.shape[d]) for d in others)):
        for channel in range(like.shape[dim]):
            whole = dict(zip([*others, dim], [*index, channel], strict=True))
            at = rows.offset + pixel * rows.pitch + channel
            expected[tuple(whole[d] for d in range(like.dim()))] = at
        pixel += 1
    assert expected == _addresses(like)
    assert (rows.pixels, rows.channels) == (pixel, like.shape[dim])
    assert rows.pitch >= rows.channels
    assert rows.dense == (rows.pitch == rows.channels)


@given(_SIZES, st.data())
def test_dense_tensors_are_rows(size: list[int], data: st.DataObject) -> None:
    minor = data.draw(st.integers(0, len(size) - 1))
    rows = layout.rows_of(layout.dense(size, minor, torch.float32), minor)
    assert rows is not None
    assert rows.dense
    assert rows.offset == 0


@pytest.mark.parametrize(
    ("like", "channel_dim", "expected"),
    [
        (torch.empty(2, 3, 4), -1, layout.Rows(6, 4, 4, 0)),
        (torch.empty(2, 3, 4), 1, None),
        (torch.empty(2, 3, 8)[..., 2:6], -1, layout.Rows(6, 4, 8, 2)),
        (torch.empty(2, 6, 4)[:, 1:4], -1, None),
        (torch.empty(1, 6, 4)[:, 1:4], -1, layout.Rows(3, 4, 4, 4)),
        (torch.empty(3, 8)[:, ::2], -1, None),
        (torch.empty(1, 4).expand(3, 4), -1, None),
        (torch.empty(3, 1).expand(3, 4), -1, None),
        (torch.empty(5), 0, layout.Rows(1, 5, 5, 0)),
        (torch.empty(3, 1), 0, layout.Rows(1, 3, 3, 0)),
        (torch.empty(3, 4)[:, :1], 1, layout.Rows(3, 1, 4, 0)),
        (
            torch.empty(2, 8, 4, 4).to(memory_format=torch.channels_last),
            1,
            layout.Rows(32, 8, 8, 0),
        ),
    ],
)
def test_rows(like: Tensor, channel_dim: int, expected: layout.Rows | None) -> None:
    assert layout.rows_of(like, channel_dim) == expected


@given(st.data())
def test_tensors_in_the_same_places_have_the_same_order(data: st.DataObject) -> None:
    size = tuple(data.draw(_SIZES))
    one, other = data.draw(tensors(size)), data.draw(tensors(size))
    same = layout.same_places(one, other)
    assert layout.same_places(one, layout.dense((*size, 2), 0, torch.float32)) is False
    if same:
        orders = [sorted(at, key=at.__getitem__) for at in map(_addresses, (one, other))]
        assert orders[0] == orders[1]


def test_the_same_places() -> None:
    x = torch.empty(2, 8, 3, 4)
    images = x.contiguous(memory_format=torch.channels_last)
    assert layout.same_places(x, torch.empty(2, 8, 3, 4))
    assert layout.same_places(images, images.clone())
    assert not layout.same_places(images, x)
    assert not layout.same_places(x, images)
    wide = torch.empty(2, 20, 3, 4).contiguous(memory_format=torch.channels_last)
    assert layout.same_places(images, wide[:, 5:13])
    assert layout.same_places(wide[:, 5:13], images)
    assert not layout.same_places(images, images[:1].expand(2, 8, 3, 4))


@given(tensors())
def test_the_extent_reaches_the_last_element(like: Tensor) -> None:
    last = max(_addresses(like).values())
    assert layout.extent_bytes(like) == (last + 1) * 4
    assert layout.extent_bytes(like.to(torch.bfloat16).as_strided((0,), (1,))) == 0


@given(tensors())
def test_the_minor_dimension_has_stride_one_where_any_has(like: Tensor) -> None:
    minor = layout.minor_dim(like)
    if 1 in like.stride():
        assert like.stride(minor) == 1
        assert like.shape[minor] == max(
            n for n, s in zip(like.shape, like.stride(), strict=True) if s == 1
        )
    else:
        assert minor == like.dim() - 1


@pytest.mark.parametrize(
    ("size", "minor", "after", "expected"),
    [
        ((2, 8, 3, 4), 1, (2, 8, 12), 1),
        ((2, 8, 3, 4), 1, (2, 2, 4, 3, 4), 2),
        ((2, 8, 12), 1, (2, 8, 3, 4), 1),
        ((2, 8, 3, 4), 3, (2, 8, 12), 2),
        ((2, 8, 3, 4), 3, (96, 2), 1),
        ((2, 12, 8), 2, (2, 3, 4, 8), 3),
        ((6,), 0, (2, 3), 1),
        ((1,), 0, (), 0),
    ],
)
def test_what_stays_neighbours_in_a_reshape(
    size: tuple[int, ...], minor: int, after: tuple[int, ...], expected: int
) -> None:
    assert layout.reshaped_minor(size, minor, after) == expected


def test_aliases() -> None:
    x = torch.empty(4, 4)
    assert layout.is_alias(x, x[1:].t())
    assert not layout.is_alias(x, x.clone())


# Images whose pixels are reduced.


@given(tensors(), st.data())
def test_pixels_are_where_they_are_said_to_be(like: Tensor, data: st.DataObject) -> None:
    """Each image's pixels are rows of channels, some elements apart; results lie as channels of
    images without them."""
    dims = data.draw(st.sets(st.integers(0, like.dim() - 1), min_size=1))
    rows = pixel_rows(like, dims)
    if rows is None:
        return
    after = reduced(like, dims, (1,) * like.dim())
    results = _addresses(after.as_strided(after.shape, after.stride(), 0))
    expected: dict[int, set[int]] = {}
    for image, pixel, channel in product(
        range(rows.images), range(rows.pixels), range(rows.channels)
    ):
        at = (image * rows.pixels + pixel) * rows.pitch + channel
        expected.setdefault(image * rows.channels + channel, set()).add(at)
    found: dict[int, set[int]] = {}
    for index, at in _addresses(like).items():
        kept = tuple(0 if d in dims else i for d, i in enumerate(index))
        found.setdefault(results[kept], set()).add(at - int(like.storage_offset()))
    assert found == expected
