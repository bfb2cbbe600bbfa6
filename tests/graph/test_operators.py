"""What networks are made of beside their layers: right answers, by kernels where there are some.

Images are channels-last in these tests where nothing else is said, as between layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnsep
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from dnnsep.graph.report import Report
from tests.graph.models import Block, Function, check, depthwise, image, kinds, settled

# Long together; what one kernel, rule or operator does is in them, networks of all in other files.
pytestmark = pytest.mark.slow

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.25),
    "x times sigmoid": lambda x: x * torch.sigmoid(x),
    "mish": F.mish,
    "elu": F.elu,
}


_NO_KERNELS = ("gelu by tanh", "hardtanh", "mish", "elu")
_EACH = [
    pytest.param(name, marks=pytest.mark.xfail(strict=True, reason="there is no kernel for it"))
    if name in _NO_KERNELS
    else name
    for name in _ACTIVATIONS
]


def _image(channels: int = 8, seed: int = 3) -> Tensor:
    return image(channels, seed).contiguous(memory_format=torch.channels_last)


def _by_kernels(model: nn.Module, example: Any = None, **options: Any) -> Report:
    """Returns the report of a model once optimized, in which nothing is left to torch."""
    report = check(settled(model), _image() if example is None else example, **options)
    assert not report.notes
    assert not report.calls
    assert report.native_flops in (0.0, 1.0)
    assert report.pieces == 1
    return report


# Convolutions with what follows them.


@pytest.mark.parametrize("after", [False, True], ids=["added before", "added after"])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["relu", "relu6", "silu", "hardswish", "gelu", "sigmoid"])
def test_convolution_residual_and_activation(name: str, groups: int, after: bool) -> None:
    activation = _ACTIVATIONS[name]

    def of(convolution: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if after:
            return activation(convolution(x)) + y
        return activation(y + convolution(x))

    model = Function(of, nn.Conv2d(8, 8, 3, padding=1, groups=groups))
    report = _by_kernels(model, (_image(), _image(seed=4)))
    (entry,) = report.entries
    assert entry.problem is not None
    assert entry.problem.activations == (name,)
    assert entry.flops == 2 * 2 * 8 * 90 * 9 * 8 // groups
    assert not report.kernels


@pytest.mark.parametrize("contiguous", [False, True], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_convolutions(groups: int, multiplier: int, contiguous: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8 * multiplier, 3, 2, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(8 * multiplier),
        nn.GELU(),
        nn.Conv2d(8 * multiplier, 16, 1, groups=groups),
    )
    report = check(settled(model), image() if contiguous else _image())
    assert kinds(report) == ["convolution"] * 2
    assert set(report.calls) <= {"copy"}


@pytest.mark.parametrize("name", _EACH)
def test_depthwise_with_any_activation(name: str) -> None:
    activation = _ACTIVATIONS[name]
    report = _by_kernels(Function(lambda c, x: activation(c(x)), depthwise()))
    assert kinds(report) == ["convolution"]


@pytest.mark.parametrize("name", _EACH)
def test_activations_of_inputs(name: str) -> None:
    activation = _ACTIVATIONS[name]
    for x in (_image(), image()):
        assert not check(Function(activation).eval(), x).calls


@pytest.mark.parametrize("name", _ACTIVATIONS)
def test_any_activation_is_right(name: str) -> None:
    activation = _ACTIVATIONS[name]
    model = Function(lambda a, b, x: activation(b(activation(a(x)) + x)), depthwise(), depthwise())
    for x in (_image(), image(), 20 * _image()):
        assert not check(settled(model), x).notes


def test_a_depthwise_convolution_with_a_multiplier() -> None:
    report = check(settled(nn.Sequential(nn.Conv2d(8, 24, 3, groups=8), nn.Sigmoid())), _image())
    assert not report.notes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_in_bfloat16(dtype: torch.dtype) -> None:
    def of(a: nn.Module, b: nn.Module, c: nn.Module, n: nn.Module, x: Tensor) -> Tensor:
        y = F.gelu(a(x) + x)
        y = F.hardswish(b(y) + y)
        z: Tensor = n(c(y).permute(0, 2, 3, 1))
        return z.softmax(-1)

    model = Function(
        of,
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        depthwise(),
        nn.Conv2d(8, 12, 1),
        nn.LayerNorm(12),
    )
    settled(model).to(dtype)
    bound = 1e-5 if dtype is torch.float32 else 0.05
    report = check(model, _image().to(dtype), bound)
    assert not report.notes
    assert not report.calls


# Exactly, on small integers.

# (in, out, kernel), the other arguments, the input's shape.
CONVOLUTIONS: dict[str, tuple[tuple[int, int, Any], dict[str, Any], tuple[int, ...]]] = {
    "a network's first": ((3, 32, 3), {"stride": 2, "padding": 1}, (1, 3, 40, 40)),
    "one without a border": ((3, 48, 4), {"stride": 4}, (2, 3, 32, 28)),
    "a wide one": ((3, 16, 7), {"stride": 2, "padding": 3}, (1, 3, 30, 31)),
    "many channels": ((70, 33, 3), {"padding": "same"}, (1, 70, 9, 8)),
    "an even kernel": ((5, 6, 4), {"padding": "same"}, (1, 5, 9, 8)),
    "pointwise": ((37, 50, 1), {}, (2, 37, 7, 5)),
    "pointwise with a stride": ((16, 24, 1), {"stride": 2}, (1, 16, 9, 9)),
    "dilated": ((5, 9, (3, 2)), {"dilation": (2, 3), "padding": (1, 0)}, (2, 5, 11, 13)),
    "one row": ((20, 20, (1, 31)), {"padding": (0, 15)}, (1, 20, 1, 90)),
    "one pixel": ((64, 10, 3), {"padding": 1}, (1, 64, 1, 1)),
    "depthwise": ((24, 24, 5), {"groups": 24, "stride": 2, "padding": 2}, (1, 24, 14, 13)),
    "depthwise of one pixel": ((24, 24, 3), {"groups": 24, "padding": 1}, (1, 24, 1, 1)),
    "one row of one channel": ((1, 2, (1, 3)), {"stride": 2}, (1, 1, 1, 3)),
    "no bias": ((8, 8, 3), {"bias": False}, (1, 8, 6, 6)),
    "padded beyond the kernel": ((4, 6, 1), {"padding": 2}, (1, 4, 5, 5)),
    "groups": ((8, 12, 3), {"groups": 4, "padding": 1}, (2, 8, 9, 9)),
    "groups of one pixel": ((8, 12, 3), {"groups": 4, "padding": 1}, (2, 8, 1, 1)),
    "pointwise groups": ((12, 8, 1), {"groups": 2}, (1, 12, 9, 9)),
    "reflected": ((4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, (1, 4, 5, 6)),
    "circular": ((4, 6, 3), {"padding": 1, "padding_mode": "circular"}, (1, 4, 5, 6)),
}


def _integers(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Sets a layer's parameters, and gives an input, to small integers: sums are exact."""
    torch.manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape).float()
    return torch.randint(-2, 3, shape).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_exactly(name: str, dtype: torch.dtype) -> None:
    (c, oc, kernel), more, shape = CONVOLUTIONS[name]
    layer = nn.Conv2d(c, oc, kernel, **more).eval()
    x = _integers(layer, shape)
    with torch.no_grad():
        sums = layer(x)
        residual = torch.randint(-9, 10, sums.shape).float()
        expected = (torch.relu(sums), torch.relu(sums + residual))
        layer.to(dtype)

        def of(layer: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return torch.relu(layer(x)), torch.relu(layer(x.clone()) + y)

        given, added = x.to(dtype), residual.to(dtype)
        optimized = dnnsep.optimize(Function(of, layer).eval(), (given, added))
        for last in (False, True):
            if last:
                given = given.contiguous(memory_format=torch.channels_last)
                added = added.contiguous(memory_format=torch.channels_last)
            plain, both = optimized(given, added)
            assert torch.equal(plain.float(), expected[0].to(dtype).float())
            # torch, where the sum is left to it, rounds before it adds.
            rounded = torch.relu(sums.to(dtype) + residual.to(dtype)).float()
            exact = expected[1].to(dtype).float()
            assert torch.equal(both.float(), exact) or torch.equal(both.float(), rounded)
    assert set(kinds(report_of(optimized))) == {"convolution"}


@pytest.mark.parametrize("shape", [(3, 70), (2, 5, 70), (70,), (1, 70), (2, 2, 3, 70)], ids=str)
def test_linear_layers_exactly(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(70, 33).eval()
    x = _integers(layer, shape)
    model = nn.Sequential(layer, nn.ReLU6()).eval()
    optimized = dnnsep.optimize(model, x)
    with torch.no_grad():
        assert torch.equal(optimized(x), model(x))
    assert kinds(report_of(optimized)) == ["linear"]


# Normalisations.


def test_batch_norms_that_follow_no_convolution() -> None:
    report = _by_kernels(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    assert report.kernels == {"row-wise": 1}
    _by_kernels(nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)))
    _by_kernels(nn.BatchNorm2d(8))
    _by_kernels(nn.Sequential(depthwise(), nn.SiLU(), nn.BatchNorm2d(8, affine=False)))


def test_a_batch_norm_of_the_batch_itself() -> None:
    own = nn.BatchNorm2d(8, track_running_stats=False)
    report = check(settled(nn.Sequential(depthwise(), own, nn.Conv2d(8, 8, 1))), _image())
    assert report.count("separable") == 0


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norms(groups: int) -> None:
    model = nn.Sequential(depthwise(), nn.GroupNorm(groups, 8), nn.Conv2d(8, 8, 1))
    report = check(settled(model), _image())
    assert report.count("separable") == 0
    assert not report.notes


class ChannelNorm(nn.LayerNorm):
    """ConvNeXt's: of the channels of images (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return y.permute(0, 3, 1, 2)


class OwnNorm(nn.Module):
    """The same, written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(spread + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


@pytest.mark.parametrize("norm", [ChannelNorm, OwnNorm])
def test_layer_norms_of_channels(norm: Callable[[int], nn.Module]) -> None:
    _by_kernels(nn.Sequential(nn.Conv2d(8, 16, 2, 2), norm(16), nn.Conv2d(16, 8, 1)))


class ResponseNorm(nn.Module):
    """ConvNeXt V2's, of images (N, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
        result: Tensor = self.gamma * (x * share) + self.beta + x
        return result


class NextBlock(nn.Module):
    """ConvNeXt's, with GRN or a factor for each channel at its end."""

    def __init__(self, response: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 8)
        self.response = ResponseNorm(32) if response else nn.Identity()
        self.gamma = None if response else nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.second(self.response(F.gelu(self.first(y))))
        if self.gamma is not None:
            y = self.gamma * y
        result: Tensor = x + y.permute(0, 3, 1, 2)
        return result


@pytest.mark.parametrize("response", [False, True], ids=["factors", "GRN"])
def test_convnext_blocks(response: bool) -> None:
    report = _by_kernels(nn.Sequential(NextBlock(response), NextBlock(response)))
    assert kinds(report) == ["convolution", "linear", "linear"] * 2


# Paddings and pools.


class SamePadded(nn.Conv2d):
    """TensorFlow's padding, which is more below and right where it is odd."""

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for size, k, s in zip(reversed(x.shape[2:]), (3, 3), (2, 2), strict=True):
            missing = max((-(-size // s) - 1) * s + k - size, 0)
            sides += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, 2, 0, 1, self.groups)


@pytest.mark.parametrize("groups", [1, 8])
def test_padding_on_one_side(groups: int) -> None:
    report = _by_kernels(
        nn.Sequential(SamePadded(8, 16, 3, groups=groups), nn.ReLU(), nn.Conv2d(16, 8, 1))
    )
    (padding,) = {
        entry.problem.padding
        for entry in report.entries
        if entry.problem is not None and entry.problem.kernel == (3, 3)
    }
    assert padding == (0, 1, 1, 1)


def test_padding_that_is_not_zero() -> None:
    report = check(
        settled(Function(lambda c, x: c(F.pad(x, (1, 0, 2, 1), value=0.5)), nn.Conv2d(8, 4, 3)))
    )
    assert kinds(report) == ["convolution"]
    assert report.calls["pad"] + report.calls["constant_pad_nd"] >= 1


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max of a row": lambda x: F.max_pool2d(x, (1, 2)),
    "mean": lambda x: F.avg_pool2d(x, 2),
    "mean with border": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "mean without border": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "mean over all": lambda x: F.adaptive_avg_pool2d(x, 1),
    "to 1": lambda x: x.mean((2, 3)),
    "to 1, from the end": lambda x: x.mean([-1, -2]),
    "to 1, kept": lambda x: torch.mean(x, dim=(2, 3), keepdim=True),
    "sum": lambda x: x.sum((2, 3)),
    "largest": lambda x: F.adaptive_max_pool2d(x, 1),
    "largest by amax": lambda x: x.amax((2, 3)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 5),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str) -> None:
    pool = POOLS[name]
    report = check(settled(Function(lambda c, x: pool(torch.relu(c(x))), depthwise())), _image())
    assert not report.notes


@pytest.mark.parametrize("name", ["max", "mean", "mean over all", "to 1", "sum"])
def test_pools_by_kernels(name: str) -> None:
    pool = POOLS[name]
    _by_kernels(Function(lambda c, x: pool(torch.relu(c(x))), depthwise()))


def test_means_of_other_dimensions() -> None:
    for reduce in (
        lambda x: x.mean(2)[:, :, 0],
        lambda x: x.mean(1),
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.mean(),
        lambda x: x.mean((0, 2, 3)),
        lambda x: (m := x.mean((2, 3))) + 0 * m,
        lambda x: x.var((2, 3)),
        lambda x: x.std(1, keepdim=True) + x,
    ):
        report = check(settled(Function(lambda c, x, r=reduce: r(c(x)), depthwise())), _image())
        assert not report.notes


# Channels that move.


def _shuffled(x: Tensor, groups: int = 2) -> Tensor:
    n, c, h, w = x.shape
    y = x.view(n, groups, c // groups, h, w)
    return torch.transpose(y, 1, 2).contiguous().view(n, c, h, w)


class ShuffleUnit(nn.Module):
    """ShuffleNet V2's: half of the channels, the other half through layers, shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(4, 4, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            depthwise(4, bias=False),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return _shuffled(torch.cat((kept, self.branch(changed)), dim=1))


def test_shuffled_channels() -> None:
    report = _by_kernels(nn.Sequential(ShuffleUnit(), ShuffleUnit()))
    assert kinds(report) == ["convolution", "separable"] * 2


class Split(nn.Module):
    """YOLO's C2f: parts of the channels go through layers in a row, and all are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.inner = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(torch.split(F.silu(self.first(x)), [4, 4], 1))
        for inner in self.inner:
            parts.append(parts[-1] + F.silu(inner(parts[-1])))
        y: Tensor = self.last(torch.cat(parts, 1))
        return y


def test_split_and_joined_channels() -> None:
    report = _by_kernels(Split())
    assert kinds(report) == ["convolution"] * 4


def test_windows_and_rolls() -> None:
    """As Swin's windows: pixels that move beside channels that stay."""

    def of(linear: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        y = torch.roll(norm(x.permute(0, 2, 3, 1)), (-1, -2), (1, 2))
        n, h, w, c = y.shape
        y = y.view(n, h // 5, 5, w // 3, 3, c).transpose(2, 3).reshape(-1, 15, c)
        y = linear(y).view(n, h // 5, w // 3, 5, 3, -1).transpose(2, 3).reshape(n, h, w, -1)
        return x + torch.roll(y, (1, 2), (1, 2)).permute(0, 3, 1, 2)

    report = check(settled(Function(of, nn.Linear(8, 8), nn.LayerNorm(8))), _image())
    assert kinds(report) == ["linear"]
    assert not report.notes


# Parts without a convolution.


class Attention(nn.Module):
    def __init__(self, channels: int = 16, heads: int = 2, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm = nn.LayerNorm(channels)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, channels = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5).softmax(-1) @ v
        z: Tensor = self.project(y.transpose(1, 2).reshape(n, tokens, channels))
        return x + z


def _tokens(channels: int = 16) -> Tensor:
    return torch.randn(2, 9, channels, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
def test_attention(fused: bool) -> None:
    mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16))
    model = nn.Sequential(Attention(fused=fused), mlp)
    report = check(settled(model), _tokens())
    assert kinds(report) == ["linear"] * 4
    assert set(report.calls) <= {"scaled_dot_product_attention", "matmul", "copy"}


def test_attention_by_kernels() -> None:
    _by_kernels(nn.Sequential(Attention(), Attention(fused=False)), _tokens())


def test_torch_s_own_transformer_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    report = check(settled(layer), _tokens(), bound=1e-4)
    assert report.count("linear") >= 2 or report.notes


@pytest.mark.parametrize("dim", [-1, 2, 1])
def test_softmax(dim: int) -> None:
    report = check(settled(Function(lambda f, x: f(x).softmax(dim), nn.Linear(16, 5))), _tokens())
    assert not report.notes
    assert not report.calls or dim == 1


# One dimension.


class Conformer(nn.Module):
    """A block of speech recognition: half a feed-forward, attention, a convolution, the rest."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.before, self.after = (
            nn.Sequential(
                nn.LayerNorm(channels),
                nn.Linear(channels, 2 * channels),
                nn.SiLU(),
                nn.Linear(2 * channels, channels),
            )
            for _ in range(2)
        )
        self.attention = Attention(channels)
        self.norm = nn.LayerNorm(channels)
        self.convolution = nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 1),
            nn.GLU(dim=1),
            nn.Conv1d(channels, channels, 5, padding=2, groups=channels),
            nn.BatchNorm1d(channels),
            nn.SiLU(),
            nn.Conv1d(channels, channels, 1),
        )
        self.last = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.before(x)
        x = self.attention(x)
        x = x + self.convolution(self.norm(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.last(x + 0.5 * self.after(x))
        return y


class Speech(nn.Module):
    """Windows of a signal, blocks on them, and a class for each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(1, 16, 9, 4, 4), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2)
        )
        self.blocks = nn.Sequential(Conformer(), Conformer())
        self.head = nn.Linear(16, 11)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x).transpose(1, 2)))
        return y.log_softmax(-1)


def _signal() -> Tensor:
    return torch.randn(2, 1, 160, generator=torch.Generator().manual_seed(3))


def test_a_network_on_one_dimension() -> None:
    model = settled(Speech())
    report = check(model, _signal(), bound=1e-4)
    assert not report.notes
    assert report.native_flops == 1.0
    assert report.count("linear") == 13
    assert report.count("separable") * 2 + report.count("convolution") == 7


@pytest.mark.xfail(strict=True, reason="separable layers on one dimension are not found")
def test_separable_layers_on_one_dimension() -> None:
    model = nn.Sequential(
        nn.Conv1d(16, 16, 5, padding=2, groups=16),
        nn.BatchNorm1d(16),
        nn.SiLU(),
        nn.Conv1d(16, 8, 1),
    )
    assert kinds(check(settled(model), _tokens().transpose(1, 2))) == ["separable"]


def test_a_network_on_one_dimension_is_exported() -> None:
    model = settled(Speech())
    optimized = dnnsep.optimize(model, _signal())
    exported = torch.export.export(optimized, (_signal(),))
    with torch.no_grad():
        assert difference(exported.module()(_signal()), model(_signal())) < 1e-5
        # And what torch.export gives is optimized in its turn.
        again = dnnsep.optimize(torch.export.export(model, (_signal(),)), _signal())
        assert difference(again(_signal()), model(_signal())) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "conv",
        "depthwise",
        "batch norm",
        pytest.param(
            "glu", marks=pytest.mark.xfail(strict=True, reason="there is no kernel for it")
        ),
    ],
)
def test_layers_on_one_dimension(name: str) -> None:
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv1d(16, 8, 3, 2, padding=1),
        "depthwise": nn.Conv1d(16, 16, 5, padding=4, dilation=2, groups=16),
        "batch norm": nn.Sequential(nn.BatchNorm1d(16), nn.SiLU()),
        "glu": nn.GLU(1),
    }
    x = _tokens().transpose(1, 2)  # (N, C, L), as between layers
    report = check(settled(layers[name]), x)
    assert not report.notes
    assert not report.calls
    check(settled(layers[name]), x.contiguous())


def test_recurrent_parts_are_left_to_torch() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 5)
            self.first = nn.Conv1d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x.transpose(1, 2)).transpose(1, 2)
            z: Tensor = self.head(self.lstm(y)[0])
            return z

    report = check(settled(Recurrent()), _tokens())
    assert report.count("linear") == report.count("convolution") == 1


# What is no kernel's.


def test_other_operators_are_torch_s() -> None:
    def of(a: nn.Module, b: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = a(x)
        indices = y.flatten(2).topk(3, -1).indices
        sorted_values = torch.sort(y.flatten(1), 1).values
        return {
            "where": torch.where(y > 0, y, y * 0.1),
            "gathered": y.flatten(2).gather(-1, indices),
            "sorted": sorted_values,
            "cumulated": y.cumsum(1),
            "product": torch.einsum("nchw,ndhw->ncd", y, y),
            "masked": y.masked_fill(y < 0, -1.0),
            "argmax": y.argmax(1),
            "interpolated": F.interpolate(y, size=(7, 5), mode="bilinear"),
            "resampled": F.interpolate(y, scale_factor=2),
            "b": b(y.sin() + y.flip(2)),
            "normalized": F.normalize(y, dim=1),
            "one": y[0, 0],
            "stacked": torch.stack([y, y * 2], 1),
            "ones": torch.ones_like(y) + torch.arange(9.0),
        }

    report = check(settled(Function(of, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))), _image())
    assert not report.notes
    assert kinds(report) == ["convolution"] * 2
    assert report.calls.total() >= 8


def test_transposed_convolutions_are_right() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 4, 1))
    report = check(settled(model), _image())
    assert kinds(report).count("convolution") == 2


def test_random_numbers_differ_in_each_call() -> None:
    def of(convolution: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = convolution(x)
        return y + 1e-7 * torch.rand_like(y)

    model = settled(Function(of, nn.Conv2d(8, 4, 1)))
    optimized = dnnsep.optimize(model, _image())
    with torch.no_grad():
        assert not torch.equal(optimized(_image()), optimized(_image()))


@pytest.mark.parametrize("between", [torch.relu, lambda x: x], ids=["relu", "nothing"])
def test_blocks_of_all_sorts(between: Callable[[Tensor], Tensor]) -> None:
    """ResNet's end of a block, MobileNet's, and both after each other."""

    def of(a: nn.Module, b: nn.Module, c: nn.Module, x: Tensor) -> Tensor:
        y = between(a(x) + x)
        z: Tensor = b(y)
        return between(c(z) + z) + y

    report = _by_kernels(Function(of, nn.Conv2d(8, 8, 3, padding=1), Block(), depthwise()))
    assert kinds(report) == ["convolution", "convolution", "separable", "convolution"]
