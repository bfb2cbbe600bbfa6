"""Where a layer's weights lie in memory, and what decides it: nothing of an input's size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dnnsep.codegen.dots.amx import PAIR
from dnnsep.codegen.layer import Layer, stages_of
from dnnsep.codegen.pack import Packing
from dnnsep.dtypes import Array
from dnnsep.problem import Problem
from dnnsep.weights import random_data
from tests.codegen.conftest import Way
from tests.codegen.pieces import loaded, stored

PROBLEMS = (
    "ic37oc70ih9kh3ph1",
    "ic20oc33ih9kh3ph1cm2_nobias",
    "g1ic5oc33ih9kh3ph1",
    "g1ic37oc16ih9kh1",
    "linear_mb4ic37oc70_nobias",
)
WITHOUT_PRODUCT = ("g37ic37oc37ih9kh3ph1", "mean_mb2ic5ih3")


def _problem(text: str, way: Way) -> Problem:
    return replace(Problem.parse(text), dtype=way.dot.dtype)


def _packing(problem: Problem, way: Way, vectors: int) -> Packing:
    return Packing(Layer(stages_of(problem), way.isa, way.dot), vectors)


def _resized(problem: Problem) -> Problem:
    if problem.kind == "linear":
        return replace(problem, batch=9)
    if problem.kind == "mean":
        return Problem.mean(4, problem.in_channels, 5, 6, problem.dtype)
    return replace(problem, batch=3, height=14, width=31)


@pytest.mark.parametrize("text", PROBLEMS + WITHOUT_PRODUCT)
def test_nothing_depends_on_an_inputs_size(text: str, way: Way) -> None:
    problem = _problem(text, way)
    weights, _ = random_data(problem)
    first, second = (_packing(p, way, 2) for p in (problem, _resized(problem)))
    assert first == second
    assert hash(first) == hash(second)
    assert first.pack(weights).tobytes() == second.pack(weights).tobytes()


def _unpacked(packing: Packing, memory: NDArray[np.uint8]) -> Array:
    """Returns the panels of packed weights side by side: (places of a tile's row, channels)."""
    layer, dot = packing.layer, packing.layer.dot
    element = stored(np.zeros(1, np.float32), dot).dtype
    panels = []
    for number in range(packing.panels):
        whole = number < packing.whole_panels
        channels = packing.panel_channels if whole else packing.tail_channels
        columns = -(-channels // layer.isa.lanes) * layer.isa.lanes
        start = packing.matrix + number * packing.panel_bytes
        size = layer.depth * columns * dot.bytes
        panel = loaded(memory[start : start + size].view(element), dot)
        wide = PAIR * layer.isa.lanes if dot.in_tiles else columns
        beside = [
            group.reshape(layer.depth // dot.k, -1, dot.k)
            .transpose(0, 2, 1)
            .reshape(layer.depth, -1)
            for group in np.split(panel, range(layer.depth * wide, panel.size, layer.depth * wide))
        ]
        columns_of = [group.reshape(layer.depth, -1) for group in beside]
        panels.append(np.concatenate(columns_of, axis=1)[:, :channels])
    return np.concatenate(panels, axis=1)


@pytest.mark.parametrize("vectors", [1, 2], ids=["v1", "v2"])
@pytest.mark.parametrize("text", PROBLEMS)
def test_each_weight_is_in_its_panel(text: str, vectors: int, way: Way) -> None:
    """In the row of its channel's place in a tile, where a kernel looks for it."""
    problem = _problem(text, way)
    weights, _ = random_data(problem)
    packing = _packing(problem, way, vectors)
    layer, product = packing.layer, packing.layer.product
    assert product is not None
    memory = packing.pack(weights)
    assert memory.size == packing.size
    assert memory.ctypes.data % 64 == 0
    matrix, there = _unpacked(packing, memory), layer.order >= 0
    assert np.array_equal(matrix[there], product.matrix(weights).T[layer.order[there]])
    assert (matrix[~there] == 0).all()
    bias = memory[packing.table :].view(np.float32)
    right = 0 if weights.pointwise_bias is None else weights.pointwise_bias
    assert (bias[: problem.out_channels] == right).all()
    assert (bias[problem.out_channels :] == 0).all()
    assert bias.size == packing.panels * packing.panel_channels


@pytest.mark.parametrize("text", [*PROBLEMS[:3], WITHOUT_PRODUCT[0]])
def test_a_sources_weights_come_first(text: str, way: Way) -> None:
    problem = _problem(text, way)
    weights, _ = random_data(problem)
    packing = _packing(problem, way, 2)
    layer, source = packing.layer, packing.layer.source
    assert source is not None
    own: NDArray[Any] = source.pack(way.isa, way.dot, weights)
    assert own.nbytes == source.packed_bytes(way.isa, way.dot) <= packing.matrix
    assert packing.pack(weights)[: own.nbytes].tobytes() == own.tobytes()
    assert packing.matrix <= packing.table
    assert layer.gathered() == layer


def test_a_gathered_layer_is_packed_alike(way: Way) -> None:
    """So that one packed matrix serves plans that gather and plans that do not."""
    problem = _problem("g1ic37oc40ih5kh1", way)
    weights, _ = random_data(problem)
    packing = _packing(problem, way, 2)
    gathered = replace(packing, layer=packing.layer.gathered())
    assert gathered != packing
    assert gathered.pack(weights).tobytes() == packing.pack(weights).tobytes()


def test_a_linear_layer_is_packed_as_a_pointwise_convolution(way: Way) -> None:
    linear, convolution = (
        _packing(_problem(text, way), way, 2) for text in ("linear_mb4ic37oc70", "g1ic37oc70ih1kh1")
    )
    assert linear == convolution
