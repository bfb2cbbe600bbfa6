"""What values of a graph look like, against what torch computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dnnsep.graph import ops
from dnnsep.graph.looks import looks, without_data

aten = torch.ops.aten

IMAGES, ROWS = torch.ones(2, 6, 9, 8), torch.ones(3, 5, 6)
WEIGHT, MATRIX = torch.ones(4, 3, 3, 2), torch.ones(7, 6)


def _node(target: Any, arguments: tuple[Any, ...]) -> fx.Node:
    graph = fx.Graph()

    def node(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        made = graph.placeholder("x")
        made.meta["val"] = without_data(value)
        return made

    return graph.call_function(target, pytree.tree_map(node, arguments))


def _geometry(value: Any) -> Any:
    return pytree.tree_map(lambda x: (tuple(x.shape), x.dtype), value)


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (ops.convolution, (IMAGES, WEIGHT, None, (1, 1), (0, 0, 0, 0), (1, 1), 2)),
        (ops.convolution, (IMAGES, WEIGHT, torch.ones(4), (2, 3), (1, 2, 0, 3), (2, 1), 2)),
        (ops.convolution, (IMAGES, WEIGHT, None, (2, 1), (-1, 0, 1, -2), (1, 3), 2)),
        (ops.activation, (IMAGES.bfloat16(), "silu")),
        (aten.linear.default, (ROWS, MATRIX, torch.ones(7))),
        (aten.linear.default, (ROWS[0, 0], MATRIX)),
        (aten.add.Tensor, (IMAGES, torch.ones(6, 1, 1))),
        (aten.mul.Tensor, (IMAGES, 2)),
        (aten.mul.Tensor, (IMAGES.int(), 2.5)),
        (aten.add.Tensor, (IMAGES.bfloat16(), IMAGES)),
        (aten.softmax.int, (ROWS, -1, torch.float64)),
        (aten.mean.dim, (IMAGES, [2, 3], True)),
        (aten.mean.dim, (IMAGES, [-1, 1])),
        (aten.mean.dim, (IMAGES, [])),
        (aten.mean.dim, (IMAGES, None, True)),
        (aten.cat.default, ([IMAGES, IMAGES], 1)),
        (aten.view.default, (IMAGES, [2, 6, -1])),
        (aten.view.dtype, (IMAGES, torch.int32)),
        (aten.permute.default, (IMAGES, [0, 2, 3, 1])),
        (aten.max_pool2d.default, (IMAGES, [3, 3], [2, 2])),
        (aten.split.Tensor, (IMAGES, 4, 1)),
        (aten.topk.default, (ROWS, 2)),
        (aten.embedding.default, (MATRIX, torch.ones(2, 2, dtype=torch.int64))),
        (aten.layer_norm.default, (ROWS, [6], torch.ones(6))),
    ],
)
def test_they_are_what_torch_computes(target: Any, arguments: tuple[Any, ...]) -> None:
    found = looks(_node(target, arguments))
    assert all(x.is_meta for x in pytree.tree_leaves(found))
    assert _geometry(found) == _geometry(target(*arguments))


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (ops.convolution, (IMAGES, WEIGHT, None, (1, 1), (0, 0, 0, 0), (1, 1), 1)),
        (ops.convolution, (IMAGES, WEIGHT, None, (0, 1), (0, 0, 0, 0), (1, 1), 2)),
        (ops.convolution, (IMAGES, WEIGHT, None, (1, 1), (0, 0, 0, 0), (1, 9), 2)),
        (ops.convolution, (IMAGES, WEIGHT, None, (1, 1), (-4, -4, 0, 0), (1, 1), 2)),
        (ops.convolution, (IMAGES, WEIGHT, torch.ones(5), (1, 1), (0, 0, 0, 0), (1, 1), 2)),
        (ops.convolution, (IMAGES, WEIGHT.double(), None, (1, 1), (0, 0, 0, 0), (1, 1), 2)),
        (ops.convolution, (IMAGES, WEIGHT[:3], None, (1, 1), (0, 0, 0, 0), (1, 1), 2)),
        (ops.activation, (IMAGES, "system")),
        (ops.activation, (IMAGES.int(), "relu")),
        (aten.linear.default, (ROWS, MATRIX[:, :5])),
        (aten.linear.default, (ROWS, MATRIX, torch.ones(6))),
        (aten.add.Tensor, (IMAGES, torch.ones(5, 1, 1))),
        (aten.view.default, (IMAGES, [5, 5])),
        (aten.mean.dim, (IMAGES, [4])),
        (aten.mean.dim, (IMAGES, [1, -3])),
    ],
)
def test_what_does_not_fit_is_refused(target: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        looks(_node(target, arguments))
