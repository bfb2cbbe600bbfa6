"""Which of a model's layers become one network, and in whose memory they write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnsep
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.graph.difference import difference
from dnnsep.graph.network import Action, Native, Network
from tests.graph.models import (
    Block,
    Function,
    SqueezeExcite,
    assert_same,
    check,
    depthwise,
    image,
    kinds,
    ran,
    runner_of,
    settled,
)


def _image(channels: int = 8, seed: int = 3) -> Tensor:
    return image(channels, seed).contiguous(memory_format=torch.channels_last)


def _network(model: nn.Module, x: Tensor) -> Network:
    """Returns the network of a model, whose answers have to be right."""
    optimized = dnnsep.optimize(settled(model), x)
    assert_same(optimized, model, (x,))
    return runner_of(optimized).prepared[0].lowered.network


def _layers(network: Network) -> list[Native]:
    return [
        action
        for action in network.actions
        if isinstance(action, Native) and isinstance(action.step, LayerStep)
    ]


def _others(network: Network) -> list[Action]:
    layers = _layers(network)
    return [action for action in network.actions if action not in layers]


def _extras(network: Network) -> list[str]:
    """Returns for each layer what it takes beside its input."""
    found = []
    for layer in _layers(network):
        assert isinstance(layer.step, LayerStep)
        extras = layer.step.extras
        names = ("residual", "after", "scale")
        found.append(" ".join(name for name in names if getattr(extras, name)))
    return found


class Bottleneck(nn.Module):
    """Pointwise, separable, pointwise, the input again, and then an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.depthwise = nn.Conv2d(8, 6, 1), depthwise(6)
        self.pointwise, self.expand = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.pointwise(self.depthwise(torch.relu(self.reduce(x)))))
        return torch.relu(self.expand(y) + x)


# Additions.


def test_residuals_within_a_network() -> None:
    network = _network(nn.Sequential(Block(), Block(), Block()), _image())
    assert _extras(network) == ["", "residual"] * 3
    assert not _others(network)
    network = _network(nn.Sequential(Bottleneck(), Bottleneck()), _image())
    assert _extras(network) == ["", "", "residual"] * 2
    assert len(network.parts) == 1


class Residual(nn.Module):
    """ResNet's end of a block, with an addition of some kind, of a result that no layer here reads:
    what it reads itself could become a part of its weights."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.pointwise = depthwise(), nn.Conv2d(8, 8, 1)
        self.add = add

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        other = torch.exp(x)
        y = torch.relu(self.add(self.norm(self.convolution(x)), other))
        return self.add(self.pointwise(self.depthwise(y)), y), other + y


def _into_the_other(a: Tensor, b: Tensor) -> Tensor:
    b += a
    return b


@pytest.mark.parametrize(
    "add",
    [torch.add, lambda a, b: b + a, lambda a, b: a.add_(b), _into_the_other],
    ids=["add", "swapped", "in place", "into the other"],
)
def test_residual_additions(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    network = _network(Residual(add), _image())
    assert _extras(network) == ["residual", "residual"]


def test_additions_with_a_factor_are_no_residuals() -> None:
    for of in (
        lambda c, x: torch.add(c(x), x, alpha=2),
        lambda c, x: c(x) - x,
        lambda c, x: c(x) + 1,
        lambda c, x: torch.relu(c(x) + x.mean((2, 3), keepdim=True)),
        lambda c, x: c(x) + c(x),
        lambda c, x: (y := c(x)) + y,
        lambda c, x: c(x) + x[:1],
        lambda c, x: c(x) + x.double(),
    ):
        check(settled(Function(of, nn.Conv2d(8, 8, 3, padding=1))), _image())


def test_an_addition_of_two_convolutions() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.short, self.norm = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
            self.depthwise, self.pointwise = depthwise(), nn.Conv2d(8, 6, 1)
            self.third = nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.short(x)) + self.pointwise(self.depthwise(x))
            z: Tensor = self.third(torch.sigmoid(y))
            return z + y

    network = _network(Shortcut(), _image())
    assert sorted(_extras(network)) == ["", "residual", "residual"]
    assert [action.name for action in _others(network)] == ["row-wise"]


@pytest.mark.parametrize("first", ["a", "b"])
def test_an_addition_of_two_layers_whichever_comes_first(first: str) -> None:
    """And whatever follows each of them before."""

    def of(a: nn.Module, b: nn.Module, c: nn.Module, x: Tensor) -> Tensor:
        if first == "a":
            y, z = torch.relu(a(x)), F.silu(b(x))
        else:
            z, y = F.silu(b(x)), torch.relu(a(x))
        w: Tensor = c(y + z)
        return F.gelu(w + y + z)

    layers = [nn.Conv2d(8, 8, 1), depthwise(), nn.Conv2d(8, 8, 3, padding=1, groups=2)]
    network = _network(Function(of, *layers), _image())
    assert len(_layers(network)) == 4
    assert len(network.parts) == 1


class Halves(nn.Module):
    """Two ways to halve an image, which agree about even sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 6, 2, stride=2), nn.Conv2d(8, 6, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(x) + self.first(x))


def test_residuals_of_another_size() -> None:
    model = settled(Halves())
    optimized = dnnsep.optimize(model, torch.randn(1, 8, 10, 10))
    with torch.no_grad():
        for size in (10, 6, 3):  # of 3, one pixel is added to four
            x = torch.randn(1, 8, size, size)
            assert difference(optimized(x), model(x)) < 1e-5
        with pytest.raises(RuntimeError, match="must match"):
            optimized(torch.randn(1, 8, 9, 9))


def test_another_number_of_channels_is_refused() -> None:
    for model in (nn.Sequential(Block(), Block()), Halves(), Bottleneck()):
        optimized = dnnsep.optimize(settled(model), image()[:, :, :8, :8])
        for channels in (4, 9, 16):
            with torch.no_grad(), pytest.raises(RuntimeError, match="8 channels"):
                optimized(torch.randn(1, channels, 8, 8))


# What others need.


def test_what_others_read_is_there() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())
            self.last = nn.Sequential(Block(), nn.Conv2d(8, 4, 1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.blocks(x)
            return self.last(y), y.mean(), y

    network = _network(Seen(), _image())
    assert len(_layers(network)) == 7


def test_an_activation_after_what_others_read_is_apart() -> None:
    def of(a: nn.Module, b: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = a(x)
        return torch.relu(y), b(y)

    report = check(settled(Function(of, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))), _image())
    assert [str(entry.problem) for entry in report.entries] == [
        "g1mb2ic8oc8ih10iw9kh1sh1ph0"
    ] * 2 or report.count("convolution") == 1


def test_a_depthwise_result_that_others_read() -> None:
    report = check(settled(Block(SqueezeExcite())), _image())
    assert kinds(report) == ["convolution"] * 5


def test_what_nobody_reads_is_not_computed() -> None:
    def of(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        b(x)
        y: Tensor = a(x)
        return y

    network = _network(Function(of, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), _image())
    assert len(_layers(network)) == 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_squeeze_and_excitation_is_a_part_of_the_network(dtype: torch.dtype | None) -> None:
    model = settled(nn.Sequential(Block(SqueezeExcite()), Block(SqueezeExcite())))
    optimized = dnnsep.optimize(model, _image(), dtype=dtype)
    network = runner_of(optimized).prepared[0].lowered.network
    # Expansion, depthwise, reduction, gate, projection: twice.
    assert _extras(network) == ["", "", "", "", "residual scale"] * 2
    bound = 1e-5 if dtype is None else 0.05
    with torch.no_grad():
        for other in (image(), image()[:1], torch.randn(3, 8, 5, 4)):
            assert difference(optimized(other), model(other)) < bound


# Whole networks.

Mean = nn.Module | Callable[[Tensor], Tensor]


class Classifier(nn.Module):
    """Stem, blocks, and a head that takes the mean in one of the ways there are."""

    def __init__(self, mean: Mean) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.blocks = nn.Sequential(Block(), Block())
        self.mean = mean
        self.head = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.mean(self.blocks(torch.relu(self.stem(x)))))
        return y


MEANS: dict[str, Mean] = {
    "module": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "function": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1),
    "mean": lambda x: x.mean((2, 3)),
    "mean, from the end": lambda x: x.mean([-1, -2]),
    "mean, pixels kept": lambda x: torch.mean(x, dim=(2, 3), keepdim=True).view(len(x), 8),
    "sum": lambda x: x.sum((2, 3)),
    "largest": lambda x: x.amax((2, 3)),
    "over rows": lambda x: x.mean(2)[:, :, 0],
    "seen elsewhere": lambda x: (m := x.mean((2, 3))) + 0 * m,
}


@pytest.mark.parametrize("name", MEANS)
def test_a_whole_network_is_one_piece(name: str) -> None:
    model = settled(Classifier(MEANS[name]))
    x = torch.randn(2, 3, 20, 18).contiguous(memory_format=torch.channels_last)
    network = _network(model, x)
    assert len(_layers(network)) - ("mean" in name or name in ("module", "function")) <= 7
    assert len(network.parts) == 1 or name == "over rows"
    optimized = dnnsep.optimize(model, x)
    with torch.no_grad():
        for other in (x[:1], torch.randn(3, 3, 9, 31)):
            found, expected = optimized(other), model(other)
            assert found.shape == expected.shape
            assert difference(found, expected) < 1e-5


class OnRows(nn.Module):
    """Linear layers on the last of four dimensions, between convolutions on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.mlp = nn.Sequential(nn.Linear(9, 20), nn.GELU(), nn.Linear(20, 9))
        self.end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 3, 1), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.end(self.after(self.mlp(self.before(x)).relu() + x))
        return y


@pytest.mark.parametrize("x", [image(), _image(), image()[:1]], ids=["NCHW", "NHWC", "one"])
def test_images_and_rows_are_not_mixed(x: Tensor) -> None:
    report = check(settled(OnRows()), x)
    assert kinds(report) == ["convolution", "linear", "linear", "convolution", "convolution"]


# Concatenations.


class Dense(nn.Module):
    """DenseNet's: each layer reads all that is there already."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(8 + 4 * number),
                nn.ReLU(),
                nn.Conv2d(8 + 4 * number, 4, 3, padding=1),
            )
            for number in range(layers)
        )
        self.last = nn.Conv2d(8 + 4 * layers, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        y: Tensor = self.last(x)
        return y


class DenseList(Dense):
    """The same, with one concatenation of all for each layer."""

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        y: Tensor = self.last(torch.cat(features, 1))
        return y


@pytest.mark.parametrize("make", [Dense, DenseList])
def test_nested_concatenations(make: Callable[[], nn.Module]) -> None:
    """Each layer writes into the one tensor that there is; only the input is copied into it."""
    network = _network(make(), _image())
    assert len(_layers(network)) == 5
    names = [action.name for action in _others(network)]
    assert names.count("copy") <= 1
    wholes = {layer.operands["y"].buffer for layer in _layers(network)[:-1]}
    assert len(wholes) == 1
    pitches = [layer.step.extras.y_pitch for layer in _layers(network)]  # type: ignore[attr-defined]
    assert pitches == [24, 24, 24, 24, 0]


CONCATENATIONS: dict[str, Callable[..., Tensor]] = {
    "of two": lambda a, b, x: torch.cat([a(x), b(x)], 1),
    "of one twice": lambda a, b, x: torch.cat([(y := a(x)), b(x), y], 1),
    "of nothing else": lambda a, b, x: torch.cat([(y := a(x)), y], 1),
    "with the input": lambda a, b, x: torch.cat([x, a(x), x, b(x)], 1),
    "of activations": lambda a, b, x: torch.cat([torch.relu(a(x)), F.silu(b(x) + x)], 1),
    "of pixels": lambda a, b, x: torch.cat([a(x), b(x)], 2),
    "of columns": lambda a, b, x: torch.cat([a(x), b(x)], 3),
    "of images": lambda a, b, x: torch.cat([a(x), b(x)], 0),
    "nested": lambda a, b, x: torch.cat([torch.cat([a(x), b(x)], 1), x], 1),
    "nested and read": lambda a, b, x: (
        torch.cat([(y := torch.cat([a(x), b(x)], 1)), x], 1) + torch.cat([y, x], 1).relu()
    ),
    "in two": lambda a, b, x: torch.cat([(y := a(x)), b(x)], 1) + torch.cat([x, y], 1),
    "in two others": lambda a, b, x: (
        torch.cat([(y := a(x)), (z := b(x))], 1) * torch.cat([z, y], 1)
    ),
    "of slices": lambda a, b, x: torch.cat([a(x)[:, 2:5], b(x)[:, :3], x[:, 7:]], 1),
    "of channels that are images": lambda a, b, x: torch.cat([a(x), b(x)], 1).view(2, 2, 8, 10, 9),
    "of means": lambda a, b, x: torch.cat([a(x).mean((2, 3)), b(x).amax((2, 3))], 1),
    "with a constant": lambda a, b, x: torch.cat([a(x), torch.ones(2, 3, 10, 9)], 1),
    "stacked": lambda a, b, x: torch.stack([a(x), b(x)], 1),
    "of rows": lambda a, b, x: torch.cat([a(x).permute(0, 2, 3, 1), b(x).permute(0, 2, 3, 1)], -1),
    "of both": lambda a, b, x: torch.cat(
        [torch.cat([a(x), b(x)], 1), torch.cat([b(x), a(x)], 1)], 3
    ),
    "of one that is read": lambda a, b, x: torch.cat([(y := a(x)), b(y)], 1),
    "of one that is added": lambda a, b, x: torch.cat([(y := a(x)), b(x) + y], 1),
    "of an expanded one": lambda a, b, x: torch.cat(
        [a(x), b(x).mean((2, 3), keepdim=True).expand(-1, -1, 10, 9)], 1
    ),
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", [name for name in CONCATENATIONS if name != "of images"])
def test_concatenations(name: str, grouped: bool) -> None:
    first = nn.Conv2d(8, 8, 3, padding=1, groups=2) if grouped else nn.Conv2d(8, 8, 1)
    model = settled(Function(CONCATENATIONS[name], first, depthwise()))
    for x in (_image(), image()):
        report = check(model, x)
        assert not report.notes


def test_concatenations_of_images() -> None:
    model = settled(Function(CONCATENATIONS["of images"], nn.Conv2d(8, 8, 1), depthwise()))
    assert not check(model, _image()).notes


def test_layers_read_and_write_slices() -> None:
    """Inception's branches: no copy but where torch's operators are called."""

    def of(a: nn.Module, b: nn.Module, c: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
        y = torch.cat([a(x), b(x), c(x)], 1)
        z: Tensor = d(y[:, 3:11])
        return z + y[:, :6]

    layers = [
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(8, 5, 3, padding=1),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 6, 1),
    ]
    network = _network(Function(of, *layers), _image())
    assert not _others(network)
    last = _layers(network)[-1].step
    assert isinstance(last, LayerStep)
    assert (last.extras.x_pitch, last.extras.residual_pitch) == (19, 19)


# Memory.


def test_results_between_layers_share_memory() -> None:
    def bytes_of(blocks: int) -> int:
        return _network(nn.Sequential(*[Block() for _ in range(blocks)]), _image())._arena_bytes

    assert bytes_of(6) == bytes_of(3)


def test_steps_of_a_grouped_convolution_do_not_wait() -> None:
    network = _network(nn.Sequential(nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 4, 1)), _image())
    assert [layer.waits for layer in _layers(network)] == [False, False, False, True, True]


def test_grouped_convolutions_give_the_same_each_time() -> None:
    """Steps that do not wait for each other share nothing that they write."""
    torch.manual_seed(0)
    model = settled(
        nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(64, 32, 1, groups=4)
        )
    )
    x = torch.randn(2, 32, 28, 28).contiguous(memory_format=torch.channels_last)
    optimized = dnnsep.optimize(model, x)
    with torch.no_grad():
        expected = optimized(x)
        assert difference(expected, model(x)) < 1e-5
        for _ in range(50):
            assert torch.equal(optimized(x), expected)


def test_networks_of_one_shape_share_nothing_that_is_written() -> None:
    """A result of a call is not written into by a later one, of whatever shape."""
    model = settled(nn.Sequential(Block(), Block()))
    optimized = dnnsep.optimize(model, image())
    shapes = ((2, 8, 10, 9), (1, 8, 10, 9), (2, 8, 10, 9), (1, 8, 3, 3))
    inputs = [torch.randn(shape) for shape in shapes]
    with torch.no_grad():
        found = [optimized(x) for x in inputs]
        for y, x in zip(found, inputs, strict=True):
            assert difference(y, model(x)) < 1e-5
    assert ran(optimized) >= 3
