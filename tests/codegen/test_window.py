"""Where a kernel meets an image, against plain loops over every pixel and tap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnsep.codegen.extent import Extent
from dnnsep.codegen.stages.base import Row, Window
from dnnsep.problem import Problem
from tests.strategies import problems

WINDOWS = (
    "g1ic2oc1ih5iw6kh3ph1",
    "g1ic2oc1ih4iw5kh3ph5",
    "g1ic2oc1ih6iw7kh3ph1oh3ow4",
    "g1ic2oc1ih1kh1kw31pw15",
    "g1ic2oc1ih7iw8kh5kw2sh1sw3ph2pw0dh1",
)


def _window(problem: Problem) -> Window:
    return Window(problem.kernel, problem.stride, problem.padding, problem.dilation)


def _check_naive(problem: Problem) -> None:
    window, (n, c, height, width) = _window(problem), problem.input_shape
    x = np.random.default_rng(0).integers(1, 100, problem.input_shape).astype(np.float64)
    met = list(window.naive(x))
    taps = [(i, j) for i in range(problem.kernel[0]) for j in range(problem.kernel[1])]
    assert [(i, j) for i, j, _ in met] == taps
    for i, j, values in met:
        right = np.zeros((n, c, problem.out_height, problem.out_width))
        for row in range(problem.out_height):
            for column in range(problem.out_width):
                y = row * problem.stride[0] - problem.padding[0] + i * problem.dilation[0]
                z = column * problem.stride[1] - problem.padding[2] + j * problem.dilation[1]
                if 0 <= y < height and 0 <= z < width:
                    right[:, :, row, column] = x[:, :, y, z]
        assert np.array_equal(values, right)


@pytest.mark.parametrize("text", WINDOWS)
def test_naive(text: str) -> None:
    _check_naive(Problem.parse(text))


@given(problems(kinds=("convolution",), any_padding=True))
@settings(max_examples=60, deadline=None)
def test_naive_of_any_window(problem: Problem) -> None:
    _check_naive(problem)


@given(problems(kinds=("convolution",), any_padding=True), st.data())
@settings(max_examples=200, deadline=None)
def test_taps_over_a_run(problem: Problem, data: st.DataObject) -> None:
    window, width = _window(problem), problem.width
    start = data.draw(st.integers(0, problem.out_width - 1))
    run = Row(start, data.draw(st.integers(1, problem.out_width - start)))
    taps = window.over(run, width)
    assert taps.width == run.width
    for pixel, columns in enumerate(taps.known):
        first = (start + pixel) * problem.stride[1] - problem.padding[2]
        met = [
            tap
            for tap in range(problem.kernel[1])
            if 0 <= first + tap * problem.dilation[1] < width
        ]
        assert list(columns) == met
        # Where there is none, those before it and those after it are still all others.
        assert 0 <= columns.start <= columns.stop <= problem.kernel[1]


@given(problems(kinds=("convolution", "depthwise"), any_padding=True))
@settings(max_examples=100, deadline=None)
def test_the_output_of_an_extent_is_the_problems(problem: Problem) -> None:
    size = Extent.of(problem).out_size(_window(problem))
    assert size == (problem.out_height, problem.out_width)


def test_only_a_plain_pixel_is_trivial() -> None:
    assert Window((1, 1)).trivial
    for window in (
        Window((1, 2)),
        Window((1, 1), stride=(2, 1)),
        Window((1, 1), padding=(0, 0, 0, 1)),
        Window((1, 1), padding=(0, -1, 0, 0)),
        Window((1, 1), dilation=(1, 2)),
    ):
        assert not window.trivial
