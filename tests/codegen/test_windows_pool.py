"""Pooling: every kind of window, border, width and number of channels, beside forbidden pages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.windows.pooling import Pooling
from dnnsep.codegen.windows.poolstep import PoolStep
from dnnsep.dtypes import DTYPES, TENSOR_DTYPES, Array, ByteDtype
from tests.codegen.stepping import ONS, On, run_images

WINDOWS = {
    "max 3x3s2p1": Pooling("max", (3, 3), (2, 2), (1, 1)),
    "max 2x2s2": Pooling("max", (2, 2), (2, 2)),
    "max 2x2s2 ceil": Pooling("max", (2, 2), (2, 2), ceil_mode=True),
    "max 5x5s1p2": Pooling("max", (5, 5), (1, 1), (2, 2)),
    "max 3x2s2x3 dilated": Pooling("max", (3, 2), (2, 3), (1, 1), (2, 2), ceil_mode=True),
    "max 1x29": Pooling("max", (1, 29), (1, 1), (0, 14)),
    "mean 3x3s1p1": Pooling("mean", (3, 3), (1, 1), (1, 1)),
    "mean 3x3s2p1 image": Pooling("mean", (3, 3), (2, 2), (1, 1), counts_pad=False),
    "mean 3x3s2 ceil": Pooling("mean", (3, 3), (2, 2), ceil_mode=True),
    "mean 3x3s2p1 ceil": Pooling("mean", (3, 3), (2, 2), (1, 1), ceil_mode=True),
    "mean 2x2s2 ceil image": Pooling("mean", (2, 2), (2, 2), ceil_mode=True, counts_pad=False),
    "mean 7x6s3x2p3": Pooling("mean", (7, 6), (3, 2), (3, 3)),
}


def _step(pooling: Pooling, on: On, x: Array, apart: int = 0, threads: int = 2) -> PoolStep:
    n, h, w, c = x.shape
    pitches = (c + apart, c + 2 * apart)
    return PoolStep(pooling, n, h, w, c, *pitches, on.dtype, on.isa, threads)


def _integers(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)


def _torch(pooling: Pooling, x: Array) -> Array:
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    rest = (pooling.kernel, pooling.stride, pooling.padding)
    if pooling.kind == "max":
        y = F.max_pool2d(images, *rest, pooling.dilation, pooling.ceil_mode)
    else:
        y = F.avg_pool2d(images, *rest, pooling.ceil_mode, pooling.counts_pad)
    found: Array = y.permute(0, 2, 3, 1).numpy()
    return found


@pytest.mark.parametrize("name", WINDOWS)
def test_naive_is_what_torch_computes(name: str) -> None:
    for height, width in ((15, 15), (16, 17), (9, 20)):
        x = _integers((2, height, width, 3))
        right = WINDOWS[name].naive(x)
        found = _torch(WINDOWS[name], x)
        assert found.shape == right.shape
        assert (np.abs(found - right) <= 1e-5).all()


@pytest.mark.parametrize("on", ONS, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_within_the_bound(name: str, on: On) -> None:
    pooling = WINDOWS[name]
    for at_end, (height, width, channels) in enumerate(((15, 16, 37), (16, 31, 5), (9, 20, 16))):
        rng = np.random.default_rng(channels)
        x = DTYPES[on.dtype].rounded(rng.standard_normal((2, height, width, channels)))
        found = run_images(_step(pooling, on, x, 3 * at_end), x, bool(at_end % 2))
        error = np.abs(found - pooling.naive(x))
        assert (error <= pooling.bound(x, on.dtype)).all()


@pytest.mark.parametrize("dtype", ["u8", "s8"])
@pytest.mark.parametrize("name", [name for name in WINDOWS if name.startswith("max")])
def test_the_largest_of_bytes(name: str, dtype: str, isa: Isa) -> None:
    pooling, of = WINDOWS[name], TENSOR_DTYPES[dtype]
    assert isinstance(of, ByteDtype)
    for at_end, (height, width, channels) in enumerate(((15, 16, 37), (16, 31, 5), (9, 20, 16))):
        rng = np.random.default_rng(channels)
        shape = (2, height, width, channels)
        x = rng.integers(of.low, of.high + 1, shape).astype(np.float32)
        found = run_images(_step(pooling, On(isa, dtype), x, 3 * at_end), x, bool(at_end % 2))
        np.testing.assert_array_equal(found, pooling.naive(x))


def test_bytes_have_no_mean(isa: Isa) -> None:
    pooling = WINDOWS["mean 3x3s1p1"]
    with pytest.raises(ValueError, match="bytes have no mean"):
        _step(pooling, On(isa, "u8"), np.zeros((1, 9, 9, 4), np.float32))


@pytest.mark.parametrize("on", ONS, ids=str)
def test_whole_means_to_the_bit(on: On) -> None:
    """Sums of small integers over a number of places that is a power of 2."""
    for kernel, padding in (((2, 2), (0, 0)), ((4, 2), (2, 1))):
        pooling = Pooling("mean", kernel, (1, 2), padding)
        x = _integers((1, 11, 14, 21))
        found = run_images(_step(pooling, on, x), x, True)
        assert (found == DTYPES[on.dtype].rounded(pooling.naive(x))).all()


@pytest.mark.parametrize("on", ONS, ids=str)
def test_nan_and_infinity(on: On) -> None:
    """A maximum is NaN where any value under the kernel is, wherever that lies."""
    pooling = Pooling("max", (3, 3), (2, 2), (1, 1))
    rng = np.random.default_rng(1)
    x = _integers((1, 13, 14, 19))
    x[rng.random(x.shape) < 0.3] = -np.inf
    x[rng.random(x.shape) < 0.03] = np.inf
    x[rng.random(x.shape) < 0.03] = np.nan
    x[0, :5, :5] = -np.inf
    found, right = run_images(_step(pooling, on, x), x, True), _torch(pooling, x)
    assert np.isnan(right).any()
    assert np.array_equal(found, right, equal_nan=True)


@pytest.mark.parametrize("name", ["max 3x3s2p1", "mean 3x3s1p1"])
def test_any_team_has_the_same_bits(name: str) -> None:
    """Few rows of many channels: channels are shared out too."""
    on = ONS[-1]
    for shape in ((1, 9, 11, 24), (1, 3, 15, 700)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        right = run_images(_step(WINDOWS[name], on, x, threads=1), x, True, 1)
        for threads in range(1, 5):
            for team_size in range(1, 5):
                step = _step(WINDOWS[name], on, x, threads=threads)
                assert run_images(step, x, True, team_size).tobytes() == right.tobytes()


def test_one_kernel_for_all_sizes() -> None:
    x = np.zeros((1, 9, 9, 40), np.float32)
    step = _step(WINDOWS["max 3x3s2p1"], ONS[-1], x)
    other = replace(step, images=3, height=20, channels=72, x_pitch=80, y_pitch=72)
    assert step.kernel is other.kernel


def test_what_torch_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="half the kernel"):
        Pooling("max", (3, 3), (2, 2), (2, 1))
    with pytest.raises(ValueError, match="dilation"):
        Pooling("mean", (3, 3), (2, 2), dilation=(2, 1))
    with pytest.raises(ValueError, match="larger than an image"):
        Pooling("max", (5, 5), (1, 1)).output_size(4, 9)
