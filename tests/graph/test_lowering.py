"""Pieces of lowering: slots of concatenations, names of constants, operands of rows, the state of a
module, and how faults of kernels are found."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import dnnsep
from dnnsep.graph.capture import capture
from dnnsep.graph.constants import constants
from dnnsep.graph.difference import difference
from dnnsep.graph.keys import constant_keys
from dnnsep.graph.optimize import report_of
from dnnsep.graph.rows import kind_of
from dnnsep.graph.slots import Slot, slots
from dnnsep.weights import Weights
from tests.graph.models import (
    Block,
    Function,
    SqueezeExcite,
    assert_same,
    depthwise,
    image,
    kinds,
    left,
    settled,
)
from tests.graph.test_optimize import Branching

aten = torch.ops.aten


# Slots.


def _graph(function: Any, *inputs: Tensor) -> fx.Graph:
    return capture(Function(function).eval(), inputs).graph_module.graph


def _slots(function: Any, *inputs: Tensor) -> tuple[list[fx.Node], dict[fx.Node, Slot]]:
    """Returns the concatenations of a function, in order, and the slots of values."""
    graph = _graph(function, *inputs)
    inner = constants(graph)
    nodes = [node for node in graph.nodes if node not in inner]
    wholes = [node for node in nodes if node.target is aten.cat.default]
    return wholes, slots(nodes, inner)


X = torch.randn(2, 3, 4, 5)


def _places(function: Any, *inputs: Tensor) -> dict[str, tuple[int, int, int]]:
    """Returns for each value with a slot, by its operator, in which concatenation it is, and
    where."""
    wholes, found = _slots(function, *inputs)
    return {
        node.name: (wholes.index(slot.whole), slot.dim, slot.start) for node, slot in found.items()
    }


def test_values_have_slots_side_by_side() -> None:
    assert _places(lambda x: torch.cat([x.relu(), x.exp(), x.sin()], 1), X) == {
        "relu": (0, 1, 0),
        "exp": (0, 1, 3),
        "sin": (0, 1, 6),
    }
    assert _places(lambda x: torch.cat([x.relu(), x.exp()], -1), X) == {
        "relu": (0, 3, 0),
        "exp": (0, 3, 5),
    }


def test_a_value_has_the_slot_of_the_last_that_reads_it() -> None:
    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        y, z = x.relu(), x.exp()
        return torch.cat([y, z], 1), torch.cat([x.sin(), y], 1)

    assert _places(of, X) == {"relu": (1, 1, 3), "sin": (1, 1, 0), "exp": (0, 1, 3)}


def test_concatenations_within_concatenations() -> None:
    def of(x: Tensor) -> Tensor:
        inner = torch.cat([x.relu(), x.exp()], 1)
        return torch.cat([x.sin(), inner, x.cos()], 1)

    assert _places(of, X) == {
        "sin": (1, 1, 0),
        "cat": (1, 1, 3),
        "cos": (1, 1, 9),
        "relu": (0, 1, 0),
        "exp": (0, 1, 3),
    }


def test_what_was_concatenated_before_is_a_part_of_what_is_later() -> None:
    """DenseNet's lists: the first concatenations are beginnings of the last."""

    def of(x: Tensor) -> Tensor:
        a = x.relu()
        b = torch.cat([x, a], 1).exp()[:, :3]
        c = torch.cat([x, a, b], 1).sin()[:, :3]
        return torch.cat([x, a, b, c], 1)

    found = _places(of, X)
    assert found["relu"] == (2, 1, 3)
    assert found["cat"] == (2, 1, 0)
    assert found["cat_1"] == (2, 1, 0)


def test_one_value_twice_has_no_slot() -> None:
    assert _places(lambda x: torch.cat([(y := x.relu()), y], 1), X) == {}
    assert _places(lambda x: torch.cat([x.relu(), x.double()], 1), X) == {}


# Names of constants.


class Computed(nn.Module):
    """Weights that are computed of parameters, with factors that are the example's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, 1, 1))
        self.other = nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = F.conv2d(x, self.weight * 2)
        second = F.conv2d(x, self.weight * 3)
        third = F.conv2d(x, self.other * 2)
        same = F.conv2d(x, 2 * self.weight + 0 * self.other)
        return first + second * third + same


def _keys(model: nn.Module, x: Tensor) -> dict[str, str]:
    graph = capture(model, (x,)).graph_module.graph
    keys = constant_keys(graph, constants(graph))
    return {node.name: key for node, key in keys.items()}


def test_constants_of_one_name_are_computed_alike() -> None:
    model = settled(Computed())
    first, second = _keys(model, image()), _keys(model, image()[..., :5])
    assert first == second
    assert len(set(first.values())) == len(first) - 1  # twice the weight, written in two ways
    assert {"weight", "other"} <= set(first.values())


def test_weights_that_depend_on_the_size_of_the_input() -> None:
    """Are packed again for another size."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            by_number = F.conv2d(x, self.weight * x.shape[-1])
            by_tensor = F.conv2d(x, self.weight * torch.tensor(float(x.shape[-1])))
            by_many = F.conv2d(x, self.weight * torch.full((4, 1, 1, 1), float(x.shape[-1])))
            by_range = F.conv2d(x, self.weight[:, :, 0, 0].roll(x.shape[-1])[:, :, None, None])
            return by_number + by_tensor * by_many + by_range

    model = settled(Scaled())
    optimized = dnnsep.optimize(model, image())
    with torch.no_grad():
        for width in (9, 5, 1, 9):
            x = image()[..., :width].contiguous()
            assert difference(optimized(x), model(x)) < 1e-5


# Operands of row-wise kernels.


@pytest.mark.parametrize("channel_dim", [-1, -3])
@pytest.mark.parametrize("whole", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 1, 5), (2, 5, 1, 1)], ids=str)
def test_kinds_of_operands(whole: tuple[int, ...], channel_dim: int) -> None:
    """Against which elements of the operand all elements of the whole read."""
    for has in product([False, True], repeat=4):
        shape = tuple(n if there else 1 for n, there in zip(whole, has, strict=True))
        for given in {shape, shape[sum(n == 1 for n in shape[:1]) :]}:
            kind = kind_of(given, whole, channel_dim)
            reads = torch.arange(prod(given)).reshape(given).expand(whole)
            rows = reads.movedim(channel_dim, -1).reshape(-1, whole[channel_dim])
            of_pixels = bool((rows == rows[:, :1]).all())
            of_channels = bool((rows == rows[:1]).all())
            if kind is None:
                assert not of_pixels or len(set(rows.flatten().tolist())) < rows.shape[0]
                assert not of_channels or len(set(rows.flatten().tolist())) < rows.shape[1]
                continue
            name, images = kind
            if name == "pixels":
                assert len(set(rows.flatten().tolist())) == rows.numel()
            elif name == "channels":
                assert of_channels
                assert len(set(rows.flatten().tolist())) == rows.shape[1]
            elif name == "pixel":
                assert of_pixels
                assert len(set(rows.flatten().tolist())) == rows.shape[0]
            else:
                assert name == "image"
                by_image = rows.reshape(images, -1, rows.shape[1])
                assert bool((by_image == by_image[:, :1]).all())
                assert len(set(by_image.flatten().tolist())) == images * rows.shape[1]


# Faults.


@pytest.fixture
def wrong_weights(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes kernels of as many output channels as there are in the list multiply by other
    weights."""
    from dnnsep.codegen.pack import Packing

    faulty: list[int] = []
    pack = Packing.pack

    def packed(self: Packing, weights: Weights) -> Any:
        arrays = [weights.depthwise, weights.pointwise]
        if any(array is not None and len(array) in faulty for array in arrays):
            weights = weights.absolute()
        return pack(self, weights)

    monkeypatch.setattr(Packing, "pack", packed)
    return faulty


def test_a_layer_that_differs_is_left_to_torch(wrong_weights: list[int]) -> None:
    model = settled(nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 3)))
    wrong_weights.append(12)
    optimized = dnnsep.optimize(model, image())
    report = report_of(optimized)
    assert kinds(report) == ["left", "convolution"]
    (note,) = report.notes
    assert note.startswith("left to torch: 0: differs by ")
    assert left(report)[0].startswith("differs by ")
    assert report.error < 1e-5
    assert_same(optimized, model, (image(),))


@pytest.mark.parametrize("channels", [4, 16, 8])
def test_any_layer_of_a_block_may_differ(wrong_weights: list[int], channels: int) -> None:
    """The gate and its projection, whose input it scales, among them."""
    model = settled(nn.Sequential(Block(SqueezeExcite()), Block()))
    wrong_weights.append(channels)
    optimized = dnnsep.optimize(model, image())
    report = report_of(optimized)
    assert report.notes
    assert all(note.startswith("left to torch: ") for note in report.notes)
    assert "left" in kinds(report)
    assert len(set(kinds(report))) > 1
    assert_same(optimized, model, (image(),))


def test_a_layer_that_differs_in_a_part(wrong_weights: list[int]) -> None:
    model = settled(Branching())
    wrong_weights.append(4)
    optimized = dnnsep.optimize(model, image())
    report = report_of(optimized)
    assert report.notes[1].startswith("left to torch: head: differs by ")
    assert kinds(report)[-1] == "left"
    assert_same(optimized, model, (image(),))


def test_a_layer_that_differs_stays_with_torch(wrong_weights: list[int]) -> None:
    """For other kinds of input, with other parameters, in a copy."""
    import copy

    model = settled(nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 3)))
    wrong_weights.append(12)
    optimized = dnnsep.optimize(model, image())
    for each in (optimized, copy.deepcopy(optimized)):
        with torch.no_grad():
            each[0].weight.mul_(2)  # type: ignore[index]
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0].weight.copy_(each[0].weight)  # type: ignore[index]
        assert_same(each, other, (torch.randn(1, 8, 5, 7),))


def test_a_layer_that_cannot_be_prepared_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from dnnsep.codegen import kernel, layerstep

    original = kernel.compiled

    def compiled(special: Any) -> Any:
        if special.layer.out_channels == 12:
            raise RuntimeError("no such instruction")
        return original(special)

    monkeypatch.setattr(layerstep, "compiled", compiled)
    model = settled(nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 3)))
    optimized = dnnsep.optimize(model, image())
    report = report_of(optimized)
    assert report.notes == ["taken part by part: RuntimeError: no such instruction"]
    assert [entry.layers for entry in report.entries] == [("2",)]
    assert_same(optimized, model, (image(),))


def test_a_kind_of_input_for_which_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from dnnsep.codegen import layerstep

    model = settled(nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 3)))
    optimized = dnnsep.optimize(model, image())
    with monkeypatch.context() as broken:
        broken.setattr(layerstep, "compiled", lambda special: 1 / 0)
        assert_same(optimized, model, (torch.randn(1, 8, 7, 6),))
    assert_same(optimized, model, (image(),))


@pytest.mark.parametrize(
    "name",
    [
        "row-wise",
        "pool",
        "reduction",
    ],
)
def test_other_kernels_that_differ_are_left_to_torch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the layers around them are not."""
    from dnnsep.graph import kernels

    steps = {"row-wise": "RowwiseStep", "pool": "PoolStep", "reduction": "PixelReductionStep"}
    original = getattr(kernels, steps[name])

    def fails(*arguments: Any, **named: Any) -> Any:
        step = original(*arguments, **named)
        object.__setattr__(step, "task", lambda: 1 / 0)
        return step

    monkeypatch.setattr(kernels, steps[name], fails)
    model = settled(
        nn.Sequential(
            nn.Conv2d(8, 12, 1),
            nn.LayerNorm(9),
            nn.MaxPool2d(2),
            depthwise(12),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(12, 4, 1),
        )
    )
    optimized = dnnsep.optimize(model, image())
    report = report_of(optimized)
    assert kinds(report) == ["convolution"] * 3
    assert any("ZeroDivisionError" in note for note in report.notes)
    assert_same(optimized, model, (image(),))
