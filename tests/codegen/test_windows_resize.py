"""Resizing: up and down, by sizes and by factors, few and many channels, beside forbidden pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dnnsep.codegen.windows.resizestep import ResizeStep
from dnnsep.codegen.windows.resizing import Resizing
from dnnsep.dtypes import DTYPES, Array
from tests.codegen.stepping import ONS, On, run_images

WAYS = {
    "nearest": Resizing("nearest", (23, 18)),
    "nearest twice": Resizing("nearest", (18, 14)),
    "nearest less": Resizing("nearest", (5, 3)),
    "nearest by factors": Resizing("nearest", (23, 16), (2.6, 2.3)),
    "nearest twice by factors": Resizing("nearest", (18, 15), (2.05, 2.2)),
    "bilinear": Resizing("bilinear", (23, 18)),
    "bilinear twice": Resizing("bilinear", (18, 14)),
    "bilinear one axis": Resizing("bilinear", (9, 15)),
    "bilinear less": Resizing("bilinear", (4, 3)),
    "bilinear by factors": Resizing("bilinear", (23, 16), (2.6, 2.3)),
    "bilinear by one factor": Resizing("bilinear", (23, 16), (None, 2.3)),
    "bilinear corners": Resizing("bilinear", (23, 18), align_corners=True),
    "bilinear corners of one": Resizing("bilinear", (1, 18), align_corners=True),
}


def _step(resizing: Resizing, on: On, x: Array, apart: int = 0, threads: int = 2) -> ResizeStep:
    n, h, w, c = x.shape
    return ResizeStep(resizing, n, h, w, c, c + apart, c + 2 * apart, on.dtype, on.isa, threads)


def _torch(resizing: Resizing, x: Array) -> Array:
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    if resizing.mode == "nearest":
        y = torch.ops.aten.upsample_nearest2d(images, resizing.output_size, *resizing.scales)
    else:
        y = torch.ops.aten.upsample_bilinear2d(
            images, resizing.output_size, resizing.align_corners, *resizing.scales
        )
    found: Array = y.permute(0, 2, 3, 1).numpy()
    return found


@pytest.mark.parametrize("name", WAYS)
def test_naive_is_what_torch_computes(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 3)).astype(np.float32)
    right = WAYS[name].naive(x)
    error = np.abs(_torch(WAYS[name], x) - right)
    assert (error <= (0 if WAYS[name].mode == "nearest" else 2e-6)).all()


def test_places_of_many_sizes_are_torchs() -> None:
    """Of whole numbers that say where they are: f32 decides between neighbours."""
    for size in range(1, 40):
        x = np.arange(size, dtype=np.float32).reshape(1, 1, size, 1)
        for outputs in (*range(1, 50), 3 * size, 7 * size):
            resizing = Resizing("nearest", (1, outputs))
            assert (_torch(resizing, x) == resizing.naive(x)).all(), (size, outputs)


@pytest.mark.parametrize("on", ONS, ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_within_the_bound(name: str, on: On) -> None:
    for number, channels in enumerate((37, 5, 16)):
        rng = np.random.default_rng(channels)
        x = DTYPES[on.dtype].rounded(rng.standard_normal((2, 9, 7, channels)))
        found = run_images(_step(WAYS[name], on, x, 3 * number), x, number == 1)
        error = np.abs(found - WAYS[name].naive(x))
        assert (error <= WAYS[name].bound(x, on.dtype)).all()


@pytest.mark.parametrize("on", ONS, ids=str)
def test_quarters_to_the_bit(on: On) -> None:
    """Twice the size: whole numbers times sixteenths."""
    x = np.random.default_rng(0).integers(-7, 8, (1, 6, 5, 21)).astype(np.float32)
    resizing = Resizing("bilinear", (12, 10))
    found = run_images(_step(resizing, on, x), x, True)
    assert (found == DTYPES[on.dtype].rounded(resizing.naive(x))).all()


def test_the_nearest_keeps_every_bit() -> None:
    x = np.random.default_rng(0).integers(0, 2**32, (1, 3, 4, 20), np.uint32).view(np.float32)
    found = run_images(_step(WAYS["nearest"], ONS[-1], x), x, True)
    rows, columns = (
        WAYS["nearest"].taps(axis, size).places[:, 0] for axis, size in ((0, 3), (1, 4))
    )
    assert found.tobytes() == np.ascontiguousarray(x[:, rows][:, :, columns]).tobytes()


def test_any_team_has_the_same_bits() -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 40)).astype(np.float32)
    for name in ("nearest", "bilinear"):
        right = run_images(_step(WAYS[name], ONS[-1], x, threads=1), x, True, 1)
        for threads in range(1, 5):
            for team_size in range(1, 5):
                step = _step(WAYS[name], ONS[-1], x, threads=threads)
                assert run_images(step, x, True, team_size).tobytes() == right.tobytes()


def test_what_torch_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="mode"):
        Resizing("cubic", (3, 3))
    with pytest.raises(ValueError, match="align_corners"):
        Resizing("nearest", (3, 3), align_corners=True)
    with pytest.raises(ValueError, match="output_size"):
        Resizing("bilinear", (0, 3))
