"""Random networks keep their answers, whatever is replaced, linked or left in them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnsep
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from tests.models.test_zoo import lively

_ACTIVATIONS = [
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Hardswish,
    nn.GELU,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.LeakyReLU,
    nn.Identity,
]


class Gate(nn.Module):
    """Squeeze and excitation in one of the ways to write it."""

    def __init__(self, channels: int, rng: random.Random) -> None:
        super().__init__()
        inner = rng.randint(1, 6)
        self.reduce, self.expand = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.between = rng.choice(_ACTIVATIONS)()
        self.gate = rng.choice([nn.Sigmoid, nn.Hardsigmoid, nn.Tanh])()
        self.form = rng.randrange(5)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True) if self.form else F.adaptive_avg_pool2d(x, 1)
        gate: Tensor = self.gate(self.expand(self.between(self.reduce(means))))
        if self.form == 2:
            return gate * x
        if self.form == 3:
            return x.mul(gate)
        return x * gate + x if self.form == 4 else x * gate


def _dense(channels: int, rng: random.Random) -> tuple[nn.Module, int]:
    out = rng.randint(1, 20)
    kernels: list[tuple[int, int]] = [(1, 1), (3, 3), (5, 5), (1, 3)]
    kernel, stride = rng.choice(kernels), rng.choice([1, 1, 2])
    padding, dilation = rng.choice([0, 1]), rng.choice([1, 1, 2])
    bias = rng.random() < 0.5
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, bias=bias), out


def _pointwise(channels: int, rng: random.Random) -> tuple[nn.Module, int]:
    out = rng.randint(1, 40)
    return nn.Conv2d(channels, out, 1, bias=rng.random() < 0.5), out


def _depthwise(channels: int, rng: random.Random) -> tuple[nn.Module, int]:
    stride = rng.choice([1, 1, 2])
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels), channels


def _grouped(channels: int, rng: random.Random) -> tuple[nn.Module, int]:
    groups = rng.choice([n for n in range(1, channels + 1) if channels % n == 0])
    out = groups * rng.randint(1, 3)
    return nn.Conv2d(channels, out, 3, padding=1, groups=groups), out


def _separable(channels: int, rng: random.Random) -> tuple[nn.Module, int]:
    out = rng.choice([channels, rng.randint(1, 30)])
    first, second = (rng.choice(_ACTIVATIONS)() for _ in range(2))
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        first,
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        second,
    ), out


_LAYERS: list[Callable[[int, random.Random], tuple[nn.Module, int]]] = [
    _dense,
    _pointwise,
    _depthwise,
    _grouped,
    _separable,
    lambda channels, rng: (nn.BatchNorm2d(channels), channels),
    lambda channels, rng: (rng.choice(_ACTIVATIONS)(), channels),
    lambda channels, rng: (Gate(channels, rng), channels),
    lambda channels, rng: (nn.AvgPool2d(2, ceil_mode=True), channels),
]


class Network(nn.Module):
    """Layers in a row, with additions of earlier results of the same shape, and a head."""

    def __init__(self, rng: random.Random, x: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.added: list[int | None] = []
        self.in_place = rng.random() < 0.3
        shapes: list[torch.Size] = []
        channels = x.shape[1]
        for _ in range(rng.randint(3, 14)):
            layer, channels = rng.choice(_LAYERS)(channels, rng)
            x = layer.eval()(x)
            alike = [number for number, shape in enumerate(shapes) if shape == x.shape]
            self.added.append(rng.choice(alike) if alike and rng.random() < 0.5 else None)
            self.layers.append(layer)
            shapes.append(x.shape)
        self.head = rng.randrange(5)
        self.first, self.between = nn.Linear(channels, 9), rng.choice(_ACTIVATIONS)()
        self.second = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        results: list[Tensor] = []
        for layer, added in zip(self.layers, self.added, strict=True):
            x = layer(x)
            if added is not None and self.in_place:
                x = x * 1.0
                x += results[added]
            elif added is not None:
                x = x + results[added]
            results.append(x)
        if self.head == 0:
            return x
        if self.head == 1:
            return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), x
        if self.head == 2:
            return self._classified(x.permute(0, 2, 3, 1))
        means = x.mean((2, 3))
        return self._classified(means) + (means.sum() if self.head == 3 else 0)

    def _classified(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.between(self.first(x)))
        return y


def _check(seed: int) -> bool:
    """Whether the seed gives a network; its answers are checked."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    x = torch.randn(rng.choice([1, 2]), 3, rng.randint(9, 20), rng.randint(9, 20))
    try:
        model = lively(Network(rng, x).eval())
    except RuntimeError:  # the image has become smaller than a kernel
        return False
    before = copy.deepcopy(model.state_dict())
    optimized = dnnsep.optimize(model, x)
    assert not report_of(optimized).notes
    channels_last = x.contiguous(memory_format=torch.channels_last)
    for other in (x, x.flip(-1) * 1.5, channels_last, torch.cat([x, x * 2])):
        assert difference(optimized(other.clone()), model(other.clone())) < 1e-4, seed
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return True


def _count(seeds: range) -> int:
    with torch.no_grad():
        return sum(_check(seed) for seed in seeds)


def test_random_networks() -> None:
    assert _count(range(2, 4)) == 2


@pytest.mark.slow
def test_many_random_networks() -> None:
    assert _count(range(100, 140)) > 30
