"""The stages that fill a tile or an output, alone: each run of pixels against the naive form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.activations import ACTIVATIONS, Exact
from dnnsep.codegen.dots import dots_for
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.layer import Layer, stages_of
from dnnsep.codegen.stages.base import Image, Row, Source, Taps, Window
from dnnsep.codegen.stages.depthwise import Depthwise
from dnnsep.codegen.stages.gather import Gather
from dnnsep.codegen.stages.matmul import Matmul
from dnnsep.dtypes import DTYPES, Array
from dnnsep.problem import Problem
from dnnsep.weights import Weights, integer_data, random_data
from tests.codegen.conftest import Way
from tests.codegen.pieces import JUNK, Memory, compiled, kernel_rows, loaded, runs_of, stored

# What the code does in registers it does for a few pixels at a time: these runs need several times.
_MOST = 9

DEPTHWISE = (
    "ic1oc1ih1kh1",
    "mb2ic17oc1ih6iw21kh3sh2ph1_act:relu,none",
    "ic33oc1ih7iw8kh5kw2sh1sw3ph2pw0dh1_nobias",
    "ic9oc1ih1iw40kh1kw31pw15",
    "ic37oc1ih1kh1kw31pw15",
    "ic70oc1ih9iw12kh2kw9ph0pw4dh0dw1_act:relu6,none",
    "ic5oc1ih4iw5kh3ph5cm2_act:silu,none",
    "ic24oc1ih6iw7kh3ph1oh3ow4cm3",
    "ic256oc1ih3iw4kh3ph1",
    "ic130oc1ih2iw3kh3ph1_act:gelu,none",
)
CONVOLUTIONS = (
    "g1mb2ic3oc1ih6iw21kh3sh2ph1",
    "g1ic5oc1ih7iw8kh5kw2sh1sw3ph2pw0dh1",
    "g1ic1oc1ih1iw40kh1kw31pw15",
    "g1ic3oc1ih1kh3ph1",
    "g1ic40oc1ih9iw12kh2kw3ph0pw4dh0dw1",
    "g1ic4oc1ih4iw5kh3ph5",
    "g1ic7oc1ih6iw7kh3ph1oh3ow4",
    "g1ic64oc1ih3iw4kh2ph1",
)
ALONE = (
    "g2ic2oc2ih1kh1",
    "g17mb2ic17oc17ih6iw21kh3sh2ph1_act:relu",
    "g33ic33oc33ih7iw8kh5kw2sh1sw3ph2pw0dh1_nobias",
    "g37ic37oc37ih1iw40kh1kw31pw15",
    "g70ic70oc70ih4iw5kh3ph5_act:hardswish",
    "g24ic24oc24ih6iw7kh3ph1oh3ow4_act:sigmoid",
)


@dataclass(frozen=True)
class _Run:
    """A run of pixels of a row of an image's output."""

    image: int
    row: int
    pixels: Row

    def of(self, y: NDArray[np.floating]) -> NDArray[np.floating]:
        """Returns this run of y (N, C, OH, OW) as (pixels, C)."""
        stop = self.pixels.start + self.pixels.width
        return y[self.image, :, self.row, self.pixels.start : stop].T


class _Code:
    """A layer's source for all runs of a problem's output, as its kernel has it: a function for
    each way in which the kernel meets the image."""

    def __init__(self, problem: Problem, layer: Layer) -> None:
        source = layer.source
        assert source is not None
        self.problem, self.source = problem, source
        self.runs = [
            _Run(image, row, pixels)
            for image in range(problem.batch)
            for row in range(problem.out_height)
            for pixels in runs_of(problem.out_width, _MOST)
        ]
        module = ir.Module()
        module.triple = ""
        functions: dict[Taps, ir.Function] = {}
        for run in self.runs:
            taps = source.window.over(run.pixels, problem.width)
            if taps not in functions:
                functions[taps] = source.emit(
                    module,
                    f"source_{len(functions)}",
                    layer.isa,
                    layer.dot,
                    Image(problem.width, problem.in_channels),
                    taps,
                    layer.sink(problem.out_channels, None),
                )
        made = compiled(list(functions.values()), layer.isa)
        self._functions = dict(zip(functions, made, strict=True))

    def __call__(self, run: _Run, x: Memory, weights: int, target: int) -> None:
        """Writes a run into ``target``: ``x`` is the whole input, channels-last."""
        p, window = self.problem, self.source.window
        line = p.height * run.image + run.row * window.stride[0] - window.padding[0]
        column = run.pixels.start * window.stride[1] - window.padding[2]
        start = (line * p.width + column) * p.in_channels
        rows = kernel_rows(window, run.row, p.height)
        function = self._functions[window.over(run.pixels, p.width)]
        function(x.at(start), weights, target, *rows)


def _tiles(
    code: _Code, layer: Layer, weights: Weights, x: Array, at_end: bool
) -> list[tuple[_Run, Array]]:
    """Returns each run with the tile (pixels, depth) that it is written into."""
    dtype = DTYPES[code.problem.dtype]
    image = Memory(dtype.stored(np.ascontiguousarray(x.transpose(0, 2, 3, 1))), at_end)
    packed = Memory(code.source.pack(layer.isa, layer.dot, weights), at_end)
    assert packed.array.nbytes == code.source.packed_bytes(layer.isa, layer.dot)
    found = []
    for run in code.runs:
        # Nothing is written after the last pixel's channels, which may be the end of the memory.
        room = np.full((run.pixels.width - 1) * layer.tile_stride + layer.depth, JUNK)
        tile = Memory(stored(room, layer.dot), at_end)
        code(run, image, packed.at(0), tile.at(0))
        assert tile.untouched
        rest = np.full(layer.tile_stride - layer.depth, JUNK)
        values = np.concatenate([loaded(tile.array, layer.dot), rest])
        rows = values.reshape(run.pixels.width, layer.tile_stride)
        between = rows[:, layer.depth :]
        assert (between == JUNK).all()
        found.append((run, rows[:, : layer.depth]))
    assert image.unchanged
    assert packed.unchanged
    return found


def _layer(text: str, way: Way) -> tuple[Problem, Layer]:
    problem = replace(Problem.parse(text), dtype=way.dot.dtype)
    return problem, Layer(stages_of(problem), way.isa, way.dot)


def _bound(source: Source, x: Array, weights: Weights) -> Exact:
    size = np.abs(x.astype(np.float64))
    return source.bound(size, np.zeros_like(size), weights.absolute())[1]


@pytest.mark.parametrize("text", DEPTHWISE)
def test_depthwise_into_a_tile(text: str, way: Way) -> None:
    problem, layer = _layer(text, way)
    code, source, order = _Code(problem, layer), layer.source, layer.order
    assert isinstance(source, Depthwise)
    there = order >= 0
    assert sorted(order[there]) == list(range(problem.mid_channels))
    for at_end, (weights, x) in enumerate((integer_data(problem), random_data(problem))):
        naive, bound = source.naive(x.astype(np.float64), weights), _bound(source, x, weights)
        exact = not at_end and ACTIVATIONS[source.activation].keeps_integers
        for run, tile in _tiles(code, layer, weights, x, bool(at_end)):
            right, allowed = run.of(naive)[:, order[there]], run.of(bound)[:, order[there]]
            assert (np.abs(tile[:, there] - right) <= (0 if exact else allowed)).all()
            assert np.isfinite(tile).all()  # what is beyond the channels is multiplied by 0


@pytest.mark.parametrize("text", CONVOLUTIONS)
def test_gather_into_a_tile(text: str, way: Way) -> None:
    problem, layer = _layer(text, way)
    source, there = layer.source, layer.order >= 0
    assert isinstance(source, Gather)
    code = _Code(problem, layer)
    for at_end in (False, True):
        weights, x = random_data(problem)
        naive = source.naive(x.astype(np.float64), weights)
        for run, tile in _tiles(code, layer, weights, x, at_end):
            assert (tile[:, there] == run.of(naive)[:, layer.order[there]]).all()
            assert (tile[:, ~there] == 0).all()


@pytest.mark.parametrize("channels", [1, 37, 64, 130])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_gather_of_single_pixels(channels: int, scaled: bool, way: Way) -> None:
    """Of a pointwise convolution; each image has a scale of its own."""
    problem = Problem.parse(f"g1mb2ic{channels}oc1ih2iw12kh1_{way.dot.dtype}")
    product = Matmul(channels, 1, "none", way.dot.dtype)
    layer = Layer((product,), way.isa, way.dot).gathered(scaled)
    code, dtype = _Code(problem, layer), DTYPES[problem.dtype]
    _, x = random_data(problem)
    scale = dtype.rounded(np.random.default_rng(1).standard_normal((2, channels, 1, 1)))
    right = dtype.rounded(x * scale) if scaled else x
    for at_end in (False, True):
        image = Memory(dtype.stored(np.ascontiguousarray(x.transpose(0, 2, 3, 1))), at_end)
        scales = Memory(dtype.stored(scale[:, :, 0, 0]), at_end)
        for run in code.runs:
            room = np.full((run.pixels.width, layer.tile_stride), JUNK)
            tile = Memory(stored(room, way.dot), at_end)
            code(run, image, scales.at(run.image * channels), tile.at(0))
            values = loaded(tile.array, way.dot)
            assert (values[:, :channels] == run.of(right)).all()
            assert (values[:, channels : layer.depth] == 0).all()
            assert tile.untouched
        assert image.unchanged
        assert scales.unchanged


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", ALONE)
def test_depthwise_into_the_output(text: str, dtype: str, isa: Isa) -> None:
    problem = replace(Problem.parse(text), dtype=dtype)
    layer = Layer(stages_of(problem), isa, dots_for(dtype, isa)[-1])
    code, source, stores = _Code(problem, layer), layer.source, DTYPES[dtype]
    assert isinstance(source, Depthwise)
    for at_end, (weights, x) in enumerate((integer_data(problem), random_data(problem))):
        image = Memory(stores.stored(np.ascontiguousarray(x.transpose(0, 2, 3, 1))), bool(at_end))
        packed = Memory(source.pack(isa, layer.dot, weights), bool(at_end))
        n, c, h, w = problem.output_shape
        y = Memory(stores.stored(np.full((n, h, w, c), JUNK)), bool(at_end))
        for number, run in enumerate(code.runs):
            pixel = (run.image * h + run.row) * w + run.pixels.start
            code(run, image, packed.at(0), y.at(pixel * c))
            if number == 0:  # nothing beyond the run is written
                assert (stores.loaded(y.array).reshape(-1, c)[run.pixels.width :] == JUNK).all()
        found = stores.loaded(y.array).transpose(0, 3, 1, 2)
        naive, bound = source.naive(x.astype(np.float64), weights), _bound(source, x, weights)
        exact = not at_end and problem.keeps_integers
        assert (np.abs(found - naive) <= (0 if exact else bound)).all()
        assert all(memory.untouched for memory in (image, packed, y))


def test_kernel_rows_that_meet_an_image() -> None:
    window = Window((3, 1), padding=(4, 4, 0, 0), dilation=(2, 1))
    rows = [kernel_rows(window, row, 2) for row in range(6)]
    assert rows == [(2, 3), (2, 3), (1, 2), (1, 2), (0, 1), (0, 1)]
