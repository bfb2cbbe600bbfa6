"""Random networks keep their answers, whatever becomes of them: layers, kernels, views, torch."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnsep
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from tests.graph.models import settled

# Long together; what one kernel, rule or operator does is in them, networks of all in other files.
pytestmark = pytest.mark.slow

_ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Hardswish,
    nn.GELU,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Tanh,
    lambda: nn.LeakyReLU(0.1),
    lambda: nn.ELU(),
    lambda: nn.Hardtanh(-0.5, 1.5),
]

Random = random.Random
Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Step:
    """A function of results by their numbers, and of a layer where it has one."""

    name: str
    function: Callable[..., Tensor]
    operands: tuple[int, ...]
    layer: nn.Module | None = None


# A draw gives a step on a result of a number, or nothing where none of its kind fits it.
Draw = Callable[[Random, Shapes, int], Step | None]


def _of_layer(name: str, make: Callable[[Random, tuple[int, ...]], nn.Module], rank: int) -> Draw:
    def draw(rng: Random, shapes: Shapes, at: int) -> Step | None:
        if len(shapes[at]) != rank:
            return None
        return Step(name, _call, (at,), make(rng, shapes[at]))

    return draw


def _call(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = layer(x)
    return y


def _of_one(name: str, function: Callable[[Tensor], Tensor], rank: int, even: int = -1) -> Draw:
    """Returns a draw of a function of one result; where ``even`` is a dimension, only of such whose
    size of it is even."""

    def draw(rng: Random, shapes: Shapes, at: int) -> Step | None:
        shape = shapes[at]
        if len(shape) != rank or (even >= 0 and shape[even] % 2):
            return None
        return Step(name, function, (at,))

    return draw


def _of_two(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Draw:
    """Returns a draw of a function of two results of the same shape."""

    def draw(rng: Random, shapes: Shapes, at: int) -> Step | None:
        alike = [number for number, shape in enumerate(shapes) if shape == shapes[at]]
        other = rng.choice(alike)
        return Step(name, function, (at, other) if rng.random() < 0.5 else (other, at))

    return draw


def _broadcast(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Draw:
    """Returns a draw of a function of images and a number for each of their channels."""

    def draw(rng: Random, shapes: Shapes, at: int) -> Step | None:
        wanted = (*shapes[at][:2], 1, 1)
        small = [number for number, shape in enumerate(shapes) if shape == wanted]
        if len(shapes[at]) != 4 or not small:
            return None
        return Step(name, function, (at, rng.choice(small)))

    return draw


# Layers.


def _dense(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    kernels: list[tuple[int, int]] = [(1, 1), (3, 3), (5, 5), (1, 3), (2, 2), (3, 3)]
    kernel, stride = rng.choice(kernels), rng.choice([1, 1, 1, 2])
    padding: Any = rng.choice([(k // 2 for k in kernel), (0, 0), (1, 2), "same"])
    if padding == "same":
        stride = 1
    elif not isinstance(padding, tuple):
        padding = tuple(padding)
    dilation, bias = rng.choice([1, 1, 1, 2]), rng.random() < 0.5
    out = rng.choice([shape[1], rng.randint(1, 24)])
    mode = "reflect" if rng.random() < 0.1 else "zeros"
    return nn.Conv2d(shape[1], out, kernel, stride, padding, dilation, bias=bias, padding_mode=mode)


def _pointwise(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    return nn.Conv2d(shape[1], rng.choice([shape[1], rng.randint(1, 40)]), 1)


def _depthwise(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    c, kernel = shape[1], rng.choice([3, 3, 5])
    out = c * rng.choice([1, 1, 1, 2])
    return nn.Conv2d(c, out, kernel, rng.choice([1, 1, 2]), kernel // 2, groups=c)


def _grouped(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    c = shape[1]
    groups = rng.choice([n for n in range(1, c + 1) if c % n == 0])
    out = groups * rng.choice([c // groups, rng.randint(1, 3)])
    kernel = rng.choice([1, 3])
    return nn.Conv2d(c, out, kernel, padding=kernel // 2, groups=groups)


def _separable(rng: Random, shape: tuple[int, ...]) -> nn.Module:
    c = shape[1]
    out = rng.choice([c, rng.randint(1, 30)])
    parts: list[nn.Module] = [nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)]
    parts += [nn.BatchNorm2d(c)] if rng.random() < 0.7 else []
    parts += [rng.choice(_ACTIVATIONS)()] if rng.random() < 0.7 else []
    parts += [nn.Conv2d(c, out, 1, bias=rng.random() < 0.5)]
    parts += [nn.BatchNorm2d(out)] if rng.random() < 0.7 else []
    parts += [rng.choice(_ACTIVATIONS)()] if rng.random() < 0.5 else []
    return nn.Sequential(*parts)


class Gate(nn.Module):
    """Squeeze and excitation in one of the ways to write it."""

    def __init__(self, rng: Random, shape: tuple[int, ...]) -> None:
        super().__init__()
        inner = rng.randint(1, 6)
        self.reduce, self.expand = nn.Conv2d(shape[1], inner, 1), nn.Conv2d(inner, shape[1], 1)
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


class OnChannels(nn.Module):
    """A layer on the last of the dimensions (N, H, W, C), for images (N, C, H, W)."""

    def __init__(self, layer: nn.Module, back: bool) -> None:
        super().__init__()
        self.layer, self.back = layer, back

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2) if self.back else y.flatten(1, 2)


class ResponseNorm(nn.Module):
    """ConvNeXt V2's global response normalisation, of images (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.ones(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        size = size / (size.mean(1, keepdim=True) + 1e-3)
        result: Tensor = x + (self.weight * (x * size).permute(0, 2, 3, 1) + self.bias).permute(
            0, 3, 1, 2
        )
        return result


class Attention(nn.Module):
    """Attention of tokens (N, L, C) to each other, in one of the ways to write it."""

    def __init__(self, rng: Random, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels = shape[-1]
        self.heads = rng.choice([n for n in (1, 2, 3, 4) if channels % n == 0])
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.form = rng.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, channels = x.shape
        each = channels // self.heads
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, each).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0) if self.form == 0 else (qkv[0], qkv[1], qkv[2])
        if self.form == 1:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * each**-0.5) @ k.transpose(-2, -1)
            y = scores.softmax(dim=-1) @ v
        z: Tensor = self.project(y.transpose(1, 2).reshape(n, tokens, channels))
        return z


def _layer_norm(channels: int) -> nn.Module:
    # Of one channel the norm is zero whatever comes in, and IPEX's, which takes the place of
    # torch's once it is imported, raises where the stride of that channel is not 1.
    return nn.LayerNorm(channels) if channels > 1 else nn.Identity()


def _mlp(rng: Random, channels: int) -> nn.Module:
    inner = rng.randint(1, 30)
    return nn.Sequential(
        _layer_norm(channels),
        nn.Linear(channels, inner),
        rng.choice(_ACTIVATIONS)(),
        nn.Linear(inner, rng.choice([channels, 8])),
    )


def _shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _joined(rng: Random, shapes: Shapes, at: int) -> Step | None:
    """Draws a concatenation of two to four results, of which some may be the same."""
    shape = shapes[at]
    dim = 1 if len(shape) == 4 else -1
    rest = [size for d, size in enumerate(shape) if d != dim % len(shape)]
    fitting = [
        number
        for number, other in enumerate(shapes)
        if len(other) == len(shape)
        and [size for d, size in enumerate(other) if d != dim % len(shape)] == rest
    ]
    parts = (at, *(rng.choice(fitting) for _ in range(rng.randint(1, 3))))
    if sum(shapes[number][dim] for number in parts) > 100:
        return None
    return Step("cat", _concatenated if dim == 1 else _concatenated_last, parts)


def _concatenated(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def _concatenated_last(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -1)


def _added_in_place(a: Tensor, b: Tensor) -> Tensor:
    a = a * 1.0
    a += b
    return a


def _slice(rng: Random, shapes: Shapes, at: int) -> Step | None:
    """Draws some of the channels of images."""
    if len(shapes[at]) != 4 or shapes[at][1] < 3:
        return None
    start = rng.randrange(shapes[at][1] - 1)
    stop = rng.randint(start + 1, shapes[at][1])
    return Step("slice", lambda x: x[:, start:stop], (at,))


_IMAGES: list[Draw] = [
    *(_of_layer(f.__name__[1:], f, 4) for f in (_dense, _pointwise, _depthwise, _grouped)),
    *(_of_layer(f.__name__[1:], f, 4) for f in (_dense, _pointwise, _depthwise, _separable)),
    _of_layer("norm", lambda rng, shape: nn.BatchNorm2d(shape[1]), 4),
    _of_layer("groups", lambda rng, shape: nn.GroupNorm(1, shape[1]), 4),
    _of_layer("response", lambda rng, shape: ResponseNorm(shape[1]), 4),
    _of_layer("activation", lambda rng, shape: rng.choice(_ACTIVATIONS)(), 4),
    _of_layer("activation", lambda rng, shape: rng.choice(_ACTIVATIONS)(), 4),
    _of_layer("gate", Gate, 4),
    _of_layer("layer norm", lambda rng, s: OnChannels(_layer_norm(s[1]), True), 4),
    _of_layer("mlp", lambda rng, s: OnChannels(_mlp(rng, s[1]), True), 4),
    _of_layer("tokens", lambda rng, s: OnChannels(_layer_norm(s[1]), False), 4),
    _of_layer("mean pool", lambda rng, shape: nn.AvgPool2d(2, ceil_mode=True), 4),
    _of_layer("max pool", lambda rng, shape: nn.MaxPool2d(3, rng.choice([1, 2]), 1), 4),
    _of_layer("rows", lambda rng, shape: nn.Linear(shape[3], rng.choice([shape[3], 5])), 4),
    _of_layer(
        "transposed", lambda rng, shape: nn.ConvTranspose2d(shape[1], rng.randint(1, 9), 2, 2), 4
    ),
    _slice,
    _of_one("half", lambda x: x.chunk(2, 1)[1], 4, even=1),
    _of_one("glu", lambda x: F.glu(x, 1), 4, even=1),
    _of_one("shuffle", _shuffled, 4, even=1),
    _of_one("means", lambda x: x.mean((2, 3), keepdim=True), 4),
    _of_one("softmax", lambda x: x.softmax(1), 4),
    _of_one("softmax of rows", lambda x: x.softmax(-1), 4),
    _of_one("transpose", lambda x: x.transpose(2, 3), 4),
    _of_one("contiguous", Tensor.contiguous, 4),
    _of_one("roll", lambda x: torch.roll(x, (1, -2), (2, 3)), 4),
    _of_one("pad", lambda x: F.pad(x, (1, 0, 0, 2)), 4),
    _of_one("upsample", lambda x: F.interpolate(x, scale_factor=2), 4),
    _of_one("scaled", lambda x: (x * 0.5 + 1) / 3 - x.square() * 0.1, 4),
    _of_one("flattened", lambda x: x.flatten(2).transpose(1, 2), 4),
    _broadcast("scaled by channel", torch.mul),
    _broadcast("added to channel", torch.add),
]

_TOKENS: list[Draw] = [
    _of_layer("attention", Attention, 3),
    _of_layer("mlp", lambda rng, shape: _mlp(rng, shape[-1]), 3),
    _of_layer("linear", lambda rng, shape: nn.Linear(shape[-1], rng.randint(1, 30)), 3),
    _of_layer("layer norm", lambda rng, shape: _layer_norm(shape[-1]), 3),
    _of_layer("activation", lambda rng, shape: rng.choice(_ACTIVATIONS)(), 3),
    _of_one("softmax", lambda x: x.softmax(-1), 3),
    _of_one("transpose", lambda x: x.transpose(1, 2), 3),
    _of_one("mean", lambda x: x.mean(1, keepdim=True), 3),
    _of_one("image", lambda x: x.transpose(1, 2).unsqueeze(-1), 3),
]

_ANY: list[Draw] = [
    _of_two("add", torch.add),
    _of_two("add", torch.add),
    _of_two("add in place", _added_in_place),
    _of_two("subtract", torch.sub),
    _of_two("multiply", lambda a, b: a * torch.sigmoid(b)),
    _of_two("largest", torch.maximum),
    _joined,
    _joined,
]


class Network(nn.Module):
    """Steps on results of earlier ones, most often of the last, and some of them as its own."""

    def __init__(self, rng: Random, x: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.layers = nn.ModuleList()
        results = [x]
        while len(self.steps) < rng.choice([4, 8, 16]):
            shapes = [tuple(result.shape) for result in results]
            at = len(results) - 1 if rng.random() < 0.7 else rng.randrange(len(results))
            draws = _IMAGES if len(shapes[at]) == 4 else _TOKENS
            step = rng.choice(_ANY if rng.random() < 0.3 else draws)(rng, shapes, at)
            if step is None:
                continue
            try:
                y = self._run(step, results, step.layer)
            except (RuntimeError, ValueError):  # the image is smaller than the kernel
                continue
            if 0 in y.shape or y.numel() > 200_000:
                continue
            self.layers.append(step.layer or nn.Identity())
            self.steps.append(step)
            results.append(y)
        self.results = [len(results) - 1]
        if rng.random() < 0.5:
            self.results += [rng.randrange(1, len(results)) for _ in range(2)]

    @staticmethod
    def _run(step: Step, results: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        operands = [results[number] for number in step.operands]
        return step.function(layer.eval(), *operands) if layer else step.function(*operands)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        results = [x]
        for step, layer in zip(self.steps, self.layers, strict=True):
            results.append(self._run(step, results, layer if step.layer else None))
        return tuple(results[number] for number in self.results)


def _network(seed: int) -> tuple[Network, Tensor]:
    rng = Random(seed)
    torch.manual_seed(seed)
    x = torch.randn(rng.choice([1, 2]), rng.choice([3, 8]), rng.randint(5, 12), rng.randint(5, 12))
    if rng.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        model = Network(rng, x)
        settled(model)
        # Whatever was drawn, results are neither too large nor nothing but noise.
        largest = max(float(y.abs().max()) for y in model(x))
    assert largest < 1e6, seed
    return model, x


def _text(model: Network) -> str:
    return ", ".join(f"{step.name} of {step.operands}" for step in model.steps)


def check_seed(seed: int) -> None:
    """Checks the network of a seed: ``python -c "from tests.graph.test_random import check_seed;
    check_seed(7)"`` does again what failed."""
    model, x = _network(seed)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        optimized = dnnsep.optimize(model, x)
        assert not report_of(optimized).notes, (seed, _text(model), report_of(optimized).notes)
        channels_last = x.contiguous(memory_format=torch.channels_last)
        for other in (x, x.flip(-1) * 1.5, x.contiguous(), channels_last, torch.cat([x, x * 2])):
            expected = model(other.clone())
            assert difference(optimized(other), expected) < 1e-4, (seed, _text(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def check_seed_in_bfloat16(seed: int) -> None:
    """Checks that the network of a seed is not much further from the one in f32 than torch's own
    in bf16."""
    model, x = _network(seed)
    with torch.no_grad():
        expected = model(x)
        rounded = copy.deepcopy(model).bfloat16()
        theirs = difference([y.float() for y in rounded(x.bfloat16())], list(expected))
        found = dnnsep.optimize(rounded, x.bfloat16())(x.bfloat16())
        ours = difference([y.float() for y in found], list(expected))
    assert ours <= 2 * theirs + 0.02, (seed, ours, theirs, _text(model))


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed: int) -> None:
    check_seed(seed)


@pytest.mark.parametrize("seed", range(1000, 1002))
def test_random_networks_in_bfloat16(seed: int) -> None:
    check_seed_in_bfloat16(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_many_random_networks(seed: int) -> None:
    check_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1100, 1120))
def test_many_random_networks_in_bfloat16(seed: int) -> None:
    check_seed_in_bfloat16(seed)
