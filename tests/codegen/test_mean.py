"""The mean over an image's pixels, alone: vectors of channels, tails, a share of the pieces."""

from __future__ import annotations

import numpy as np
import pytest
from llvmlite import ir

from dnnsep.codegen.lang.emit import I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.layer import stages_of
from dnnsep.codegen.stages.base import Image
from dnnsep.codegen.stages.mean import Mean
from dnnsep.dtypes import DTYPES
from dnnsep.problem import Problem
from dnnsep.weights import Weights, random_data
from tests.codegen.pieces import JUNK, Memory, compiled

SHAPES = (
    "mean_mb1ic1ih1",
    "mean_mb3ic37ih2iw3",
    "mean_mb2ic16ih4",
    "mean_mb1ic70ih1iw7",
    "mean_mb2ic33ih8",
)


def _function(stage: Mean, isa: Isa, pixels: int) -> Function:
    """Returns f(x, y, first, last): the pieces [first, last)."""
    module = ir.Module()
    module.triple = ""
    code = Code(module, "mean", [POINTER, POINTER, I64, I64])
    image = Image(pixels, stage.channels)
    stage.emit_pieces(code, isa, image, stage.channels, *code.arguments)
    (function,) = compiled([code.end()], isa)
    return function


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", SHAPES)
def test_mean(text: str, dtype: str, isa: Isa) -> None:
    problem = Problem.parse(f"{text}_{dtype}")
    (stage,), stores = stages_of(problem), DTYPES[dtype]
    assert isinstance(stage, Mean)
    pixels = problem.height * problem.width
    function = _function(stage, isa, pixels)
    pieces = problem.batch * stage.pieces_of_image(isa, 1)
    rng = np.random.default_rng(0)
    # Sums of a multiple of the pixels' number: the mean is a whole number, to the last bit where
    # 1 / pixels is a number of f32.
    integers = rng.integers(-2, 3, problem.input_shape).astype(np.float32)
    integers[:, :, 0, 0] -= integers.sum((2, 3)) % pixels
    for at_end, x in enumerate((integers, random_data(problem)[1])):
        image = Memory(stores.stored(np.ascontiguousarray(x.transpose(0, 2, 3, 1))), bool(at_end))
        y = Memory(stores.stored(np.full((problem.batch, problem.in_channels), JUNK)), bool(at_end))
        for first, last in ((0, pieces // 2), (pieces // 2, pieces)):
            function(image.at(0), y.at(0), first, last)
            assert y.untouched
        assert image.unchanged
        right = stage.naive(x.astype(np.float64), Weights())
        size = np.abs(x.astype(np.float64))
        _, bound = stage.bound(size, np.zeros_like(size), Weights())
        exact = not at_end and pixels & (pixels - 1) == 0
        error = np.abs(stores.loaded(y.array) - right[:, :, 0, 0])
        assert (error <= (0 if exact else bound[:, :, 0, 0])).all()


def test_a_piece_writes_its_channels_only(isa: Isa) -> None:
    channels, pixels = 2 * isa.lanes + 3, 4
    function = _function(Mean(channels, "f32"), isa, pixels)
    image = Memory(np.ones((2, pixels, channels), np.float32), at_end=True)
    for piece in range(6):
        y = Memory(np.full((2, channels), JUNK), at_end=True)
        function(image.at(0), y.at(0), piece, piece + 1)
        start = piece % 3 * isa.lanes
        right = np.full((2, channels), JUNK)
        right[piece // 3, start : start + isa.lanes] = 1
        assert (y.array == right).all()
