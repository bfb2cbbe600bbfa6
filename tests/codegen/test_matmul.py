"""The product of pixels by panels of weights, alone: every register of sums, tails, a residual."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.activations import ACTIVATIONS, Exact
from dnnsep.codegen.dots import VectorDot
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.layer import Layer
from dnnsep.codegen.prefetch import Ahead, Prefetch
from dnnsep.codegen.stages.matmul import Matmul, Product
from dnnsep.codegen.stages.residual import Residual
from dnnsep.dtypes import DTYPES, Array
from dnnsep.weights import Weights
from tests.codegen.answers import with_residual
from tests.codegen.conftest import VECTOR_WAYS, Way
from tests.codegen.pieces import JUNK, Memory, compiled, stored

READING = [way for way in VECTOR_WAYS if way.dot.reads_input]


@pytest.fixture(params=VECTOR_WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """Returns each way of multiplying that keeps sums in vectors."""
    found: Way = request.param
    return found


@dataclass(frozen=True)
class Shape:
    """Pixels at once, None for as many as there are registers for, and a product's channels, in
    panels of so many vectors; prints itself as a test's id."""

    pixels: int | None
    channels: int
    out_channels: int
    vectors: int

    def __str__(self) -> str:
        pixels = "most" if self.pixels is None else self.pixels
        return f"p{pixels}ic{self.channels}oc{self.out_channels}v{self.vectors}"


SHAPES = (
    Shape(1, 1, 1, 1),
    Shape(5, 37, 70, 2),
    Shape(2, 130, 40, 2),
    Shape(3, 16, 17, 1),
    Shape(None, 7, 32, 2),
    Shape(None, 12, 9, 1),
)
# Channels that are no whole rounds of the loop, and, of bf16, no whole pairs where there is 1 more.
READ_SHAPES = (Shape(1, 2, 5, 1), Shape(4, 50, 40, 2), Shape(3, 22, 16, 1), Shape(2, 64, 33, 2))


@dataclass(frozen=True, eq=False)
class _Data:
    """What is multiplied: x is (pixels, channels), the residual (pixels, output channels)."""

    weights: Weights
    x: Array
    residual: Array

    @classmethod
    def draw(cls, shape: Shape, pixels: int, dtype: str, integers: bool) -> _Data:
        rng = np.random.default_rng(0)

        def draw(*size: int) -> Array:
            if integers:
                return rng.integers(-2, 3, size).astype(np.float32)
            return DTYPES[dtype].rounded(rng.standard_normal(size, dtype=np.float32))

        matrix = draw(shape.out_channels, shape.channels, 1, 1)
        weights = Weights(pointwise=matrix, pointwise_bias=draw(shape.out_channels))
        return cls(weights, draw(pixels, shape.channels), draw(pixels, shape.out_channels))

    def answer(self, product: Matmul, residual: bool) -> tuple[Exact, Exact]:
        """Returns the naive product and how far a right one may be off."""
        pixels = self.x.T.astype(np.float64)[None, :, None, :]  # as an image of one row
        size, error = np.abs(pixels), np.zeros_like(pixels)
        if residual:
            added = self.residual.T[None, :, None, :]
            naive, bound = with_residual(product, self.weights, (pixels, size, error), added)
        else:
            _, bound = product.bound(size, error, self.weights.absolute())
            naive = product.naive(pixels, self.weights)
        return naive[0, :, 0].T, bound[0, :, 0].T


class _Code:
    """A product by all panels: whole ones of so many vectors, and a last one with fewer columns."""

    def __init__(self, product: Product) -> None:
        self.product, self.width = product, product.columns
        out = product.stage.out_channels
        self._columns = [min(self.width, out - first) for first in range(0, out, self.width)]
        module = ir.Module()
        module.triple = ""
        sizes = list(dict.fromkeys(self._columns))
        functions = [
            replace(product, columns=columns).emit(module, f"matmul_{columns}") for columns in sizes
        ]
        self._functions = dict(zip(sizes, compiled(functions, product.isa), strict=True))

    def __call__(
        self, tile: NDArray[Any], order: NDArray[np.int64], data: _Data, at_end: bool
    ) -> Array:
        """Returns the product (pixels, output channels) of a tile whose rows are in an order."""
        p = self.product
        dtype, vectors = DTYPES[p.stage.dtype], self.width // p.isa.lanes
        matrix = p.stage.pack(p.isa, p.dot, vectors, order, data.weights)
        given = [
            Memory(content, at_end)
            for content in (
                tile,
                matrix,
                p.stage.pack_table(p.isa, vectors, data.weights),
                dtype.stored(data.residual),
            )
        ]
        rows, weights, bias, residual = given
        y = Memory(dtype.stored(np.full((p.pixels, p.stage.out_channels), JUNK)), at_end)
        for panel, columns in enumerate(self._columns):
            first = panel * self.width
            self._functions[columns](
                rows.at(0),
                weights.at(first * len(order)),
                bias.at(first),
                y.at(first),
                residual.at(first),
                rows.at(tile.size),  # what is fetched ahead need not be there
                weights.at(matrix.size),
            )
        assert y.untouched
        assert all(memory.unchanged for memory in given)
        return dtype.loaded(y.array)


def _product(shape: Shape, way: Way, activation: str, **fields: Any) -> Product:
    """Returns the product of a shape, which a tile's stride and depth have to be given of."""
    settings: dict[str, Any] = {
        "pixels": shape.pixels or _most_pixels(shape.vectors, way.isa),
        "columns": shape.vectors * way.isa.lanes,
        "y_pitch": shape.out_channels,
        "prefetch": None,
        "ahead": None,
        "residual": None,
        "streaming": False,
    }
    stage = Matmul(shape.channels, shape.out_channels, activation, way.dot.dtype)
    assert isinstance(way.dot, VectorDot)
    return Product(stage, way.isa, way.dot, **{**settings, **fields})


def _most_pixels(vectors: int, isa: Isa) -> int:
    """Returns how many pixels' sums fit the registers beside a step's weights and one value."""
    return (isa.registers - vectors - 1) // vectors


def _any_order(channels: int, depth: int) -> NDArray[np.int64]:
    """Returns channels at random places of a deeper row, -1 at the others."""
    rng = np.random.default_rng(2)
    order = np.full(depth, -1)
    order[rng.permutation(depth)[:channels]] = np.arange(channels)
    return order


def _tile(product: Product, order: NDArray[np.int64], data: _Data) -> NDArray[Any]:
    """Returns pixels in a tile, flat, which ends with the last one's channels."""
    values = np.full((product.pixels, product.stride), JUNK)
    values[:, : len(order)] = np.where(order >= 0, data.x[:, order], 7)  # times weights of 0
    flat = values.reshape(-1)
    return stored(flat[: len(flat) - (product.stride - len(order))], product.dot)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_a_tile(shape: Shape, residual: bool, way: Way) -> None:
    depth = way.dot.depth(shape.channels) + way.dot.depth(1)
    stride = depth + way.isa.lanes * 4 // way.dot.bytes
    activation = "relu" if residual else "none"
    added = Residual(shape.out_channels) if residual else None
    product = _product(shape, way, activation, stride=stride, depth=depth, residual=added)
    code, order = _Code(product), _any_order(shape.channels, depth)
    for integers in (True, False):
        data = _Data.draw(shape, product.pixels, way.dot.dtype, integers)
        naive, bound = data.answer(product.stage, residual)
        right = DTYPES[way.dot.dtype].rounded(naive) if integers else naive
        found = code(_tile(product, order, data), order, data, at_end=integers)
        assert (np.abs(found - right) <= (0 if integers else bound)).all()


@pytest.mark.parametrize("way", READING, ids=str)
@pytest.mark.parametrize("shape", READ_SHAPES, ids=str)
def test_of_the_input_itself(shape: Shape, way: Way) -> None:
    """Pixels follow each other, and nothing of a step beyond their channels is read."""
    channels = shape.channels
    product = _product(shape, way, "none", stride=channels, depth=channels)
    layer = Layer((product.stage,), way.isa, way.dot)
    assert layer.reads_input
    data = _Data.draw(shape, product.pixels, way.dot.dtype, integers=True)
    naive, _ = data.answer(product.stage, residual=False)
    code = _Code(product)
    for at_end in (False, True):
        found = code(stored(data.x, way.dot), layer.order, data, at_end)
        assert (found == DTYPES[way.dot.dtype].rounded(naive)).all()


def test_an_odd_pixel_is_not_read_in_pairs() -> None:
    for way in VECTOR_WAYS:
        for channels in (1, 4, 7):
            layer = Layer((Matmul(channels, 8, "none", way.dot.dtype),), way.isa, way.dot)
            whole = way.dot.reads_input and channels % way.dot.k == 0
            assert layer.reads_input is whole
            assert layer.gathered().reads_input is False


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_a_product(name: str, way: Way) -> None:
    """The sums are exact, so what is off is the activation's and the rounding's."""
    shape = Shape(2, 6, 20, 2)
    depth = way.dot.depth(shape.channels)
    residual = Residual(shape.out_channels)
    product = _product(shape, way, name, stride=depth, depth=depth, residual=residual)
    data = _Data.draw(shape, product.pixels, way.dot.dtype, integers=True)
    sums, _ = data.answer(replace(product.stage, activation="none"), residual=True)
    right = ACTIVATIONS[name].naive(sums)
    order = _any_order(shape.channels, depth)
    found = _Code(product)(_tile(product, order, data), order, data, at_end=True)
    dtype = DTYPES[way.dot.dtype]
    allowed = ACTIVATIONS[name].approximation * 2.0**-24 * (1 + np.abs(sums))
    if not ACTIVATIONS[name].keeps_integers:
        allowed = allowed + dtype.roundoff * np.abs(right)
    assert (np.abs(found - right) <= allowed).all()
    assert len(np.unique(sums)) > 8


def test_what_is_fetched_ahead_changes_nothing(way: Way) -> None:
    """It is beyond the end of the memory here."""
    shape = Shape(3, 40, 40, 2)
    depth = way.dot.depth(shape.channels)
    data = _Data.draw(shape, 3, way.dot.dtype, integers=True)
    order = _any_order(shape.channels, depth)
    plain = _product(shape, way, "none", stride=depth, depth=depth)
    fetching = replace(plain, prefetch=Prefetch(2, 2, 640, 128), ahead=Ahead(3))
    tile = _tile(plain, order, data)
    found = [_Code(product)(tile, order, data, at_end=True) for product in (plain, fetching)]
    assert (found[0] == data.answer(plain.stage, residual=False)[0]).all()
    assert (found[1] == found[0]).all()


def test_streaming_stores_whole_vectors(way: Way) -> None:
    """Into memory that starts at a page, so that each pixel's row starts at a line."""
    shape = Shape(4, 9, 64, 2)
    depth = way.dot.depth(shape.channels)
    product = _product(shape, way, "none", stride=depth, depth=depth, streaming=True)
    data = _Data.draw(shape, product.pixels, way.dot.dtype, integers=True)
    order = _any_order(shape.channels, depth)
    found = _Code(product)(_tile(product, order, data), order, data, at_end=False)
    assert (found == data.answer(product.stage, residual=False)[0]).all()
