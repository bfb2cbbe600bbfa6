"""Layers that follow each other run as one: the same to the bit as one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from dnnsep.nn.chain import PackedChain
from torch import Tensor, nn

import dnnsep
from dnnsep.graph.optimize import report_of
from tests.graph.test_optimize import (
    Block,
    SqueezeExcite,
    _depthwise,
    _settled,
    _x,
    check_from_many_threads,
)


class Bottleneck(nn.Module):
    """Pointwise, separable, pointwise, the input again, and then an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.depthwise = nn.Conv2d(8, 6, 1), _depthwise(6)
        self.pointwise, self.expand = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.pointwise(self.depthwise(torch.relu(self.reduce(x)))))
        return torch.relu(self.expand(y) + x)


def _chains(model: nn.Module, x: Tensor, **options: object) -> list[PackedChain]:
    """Of the optimized model, whose answers must be those of the layers one by one."""
    optimized = dnnsep.optimize(model, x, **options)  # type: ignore[arg-type]
    found = [m for m in optimized.modules() if isinstance(m, PackedChain)]
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(optimized(x), expected, rtol=1e-4, atol=1e-4)
        for chain in found:
            start = torch.randn(2, _first(chain), 10, 9)
            assert torch.equal(chain(start), chain.plain(start, None))
            assert torch.equal(chain(start * 2), chain.plain(start * 2, None))
    return found


def _first(chain: PackedChain) -> int:
    layer = chain.layers[0]
    convolution = getattr(layer, "depthwise", getattr(layer, "convolution", None))
    assert isinstance(convolution, nn.Conv2d)
    return convolution.in_channels


Mean = nn.Module | Callable[[Tensor], Tensor]


class Network(nn.Module):
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
    "mean, pixels kept": lambda x: torch.mean(x, dim=(2, 3), keepdim=True).view(2, 8),
}
NO_MEANS: dict[str, Mean] = {
    "sum": lambda x: x.sum((2, 3)),
    "over rows": lambda x: x.mean(2)[:, :, 0],
    "largest": nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
    "seen elsewhere": lambda x: (m := x.mean((2, 3))) + 0 * m,
}


@pytest.mark.parametrize("name", MEANS)
def test_a_whole_network_is_one_chain(name: str) -> None:
    model, x = _settled(Network(MEANS[name])), torch.randn(2, 3, 20, 18)
    optimized = dnnsep.optimize(model, x)
    (chain,) = (m for m in optimized.modules() if isinstance(m, PackedChain))
    assert _residuals_of(chain) == (None, None, 0, None, 2, None, None)
    with torch.no_grad():
        for other in (x, x[:1], torch.randn(3, 3, 9, 31)):
            if "kept" in name and len(other) != 2:
                continue
            found, expected = optimized(other), model(other)
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert list(chain.runs_on.values())[-1].startswith("7 layers by fused")
    assert report_of(optimized).count("linear") == 2


@pytest.mark.parametrize("name", NO_MEANS)
def test_what_is_no_mean(name: str) -> None:
    model, x = _settled(Network(NO_MEANS[name])), torch.randn(2, 3, 20, 18)
    optimized = dnnsep.optimize(model, x)
    lengths = [len(m.layers) for m in optimized.modules() if isinstance(m, PackedChain)]
    assert lengths == [5, 2]
    with torch.no_grad():
        torch.testing.assert_close(optimized(x), model(x), rtol=1e-4, atol=1e-4)


def _residuals_of(chain: PackedChain) -> tuple[int | None, ...]:
    return tuple(sources.residual for sources in chain.sources)


def _residuals(model: nn.Module) -> list[tuple[int | None, ...]]:
    return [_residuals_of(chain) for chain in _chains(_settled(model), _x())]


def test_residuals_within_a_chain() -> None:
    blocks = nn.Sequential(Block(), Block(), Block())
    assert _residuals(blocks) == [(None, -1, None, 1, None, 3)]
    assert _residuals(nn.Sequential(Bottleneck(), Bottleneck())) == [
        (None, None, -1, None, None, 2)
    ]


def test_what_others_need_ends_a_chain() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())
            self.last = nn.Sequential(Block(), nn.Conv2d(8, 4, 1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.blocks(x)
            return self.last(y), y.mean()

    model = _settled(Seen())
    optimized = dnnsep.optimize(model, _x())
    lengths = [len(m.layers) for m in optimized.modules() if isinstance(m, PackedChain)]
    assert lengths == [4, 3]
    with torch.no_grad():
        for a, b in zip(optimized(_x()), model(_x()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


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


def test_images_and_rows_are_not_mixed() -> None:
    model, x = OnRows().eval(), _x()
    optimized = dnnsep.optimize(model, x)
    lengths = [len(m.layers) for m in optimized.modules() if isinstance(m, PackedChain)]
    assert lengths == [2, 2]
    with torch.no_grad():
        for other in (x, x.contiguous(memory_format=torch.channels_last), x[:1]):
            torch.testing.assert_close(optimized(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squeeze_and_excitation_is_a_part_of_the_chain(dtype: torch.dtype) -> None:
    model, x = _settled(nn.Sequential(Block(SqueezeExcite()), Block(SqueezeExcite()))), _x()
    optimized = dnnsep.optimize(model, x, dtype=dtype)
    (chain,) = (m for m in optimized.modules() if isinstance(m, PackedChain))
    # Expansion, depthwise, means and reduction, gate, projection: twice.
    assert [(s.x, s.residual, s.scale) for s in chain.sources] == [
        (-1, None, None),
        (0, None, None),
        (1, None, None),
        (2, None, None),
        (1, -1, 3),
        (4, None, None),
        (5, None, None),
        (6, None, None),
        (7, None, None),
        (6, 4, 8),
    ]
    with torch.no_grad():
        for other in (x, x[:1], torch.randn(3, 8, 5, 4)):
            tolerance = 1e-4 if dtype is torch.float32 else 0.1
            torch.testing.assert_close(optimized(other), model(other), rtol=0.0, atol=tolerance)


class Halves(nn.Module):
    """Two ways to halve an image, which agree about even sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 6, 2, stride=2), nn.Conv2d(8, 6, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(x) + self.first(x))


def test_residuals_of_another_size() -> None:
    model = Halves().eval()
    optimized = dnnsep.optimize(model, torch.randn(1, 8, 10, 10))
    (chain,) = (m for m in optimized.modules() if isinstance(m, PackedChain))
    with torch.no_grad():
        for size in (10, 6, 3):  # of 3, one pixel is added to four
            x = torch.randn(1, 8, size, size)
            torch.testing.assert_close(optimized(x), model(x), rtol=1e-4, atol=1e-5)
        assert "layer by layer" in chain.runs_on.values()
        with pytest.raises(RuntimeError, match="must match"):
            optimized(torch.randn(1, 8, 9, 9))


def test_another_number_of_channels_is_refused() -> None:
    for model in (nn.Sequential(Block(), Block()), Halves(), Bottleneck()):
        optimized = dnnsep.optimize(_settled(model), _x()[:, :, :8, :8])
        for channels in (4, 9, 16):
            with torch.no_grad(), pytest.raises(RuntimeError, match="8 channels"):
                optimized(torch.randn(1, channels, 8, 8))


def test_what_cannot_be_linked() -> None:
    grouped = nn.Conv2d(8, 8, 3, groups=2)
    assert _residuals(nn.Sequential(grouped, nn.Conv2d(8, 8, 1))) == []
    assert not _chains(_settled(nn.Sequential(Block(), Block())), _x(), backend="onednn")


def test_changed_weights_and_copies() -> None:
    (chain,) = _chains(_settled(nn.Sequential(Block(), Block())), _x())
    x = torch.randn(2, 8, 10, 9)
    with torch.no_grad():
        before = chain(x)
        next(chain.parameters()).mul_(2)
        assert not torch.equal(chain(x), before)
        assert torch.equal(chain(x), chain.plain(x, None))
    assert "layers by fused" in next(iter(chain.runs_on.values()))


def test_bfloat16() -> None:
    model, x = _settled(nn.Sequential(Block(), Block())), _x()
    optimized = dnnsep.optimize(model, x, dtype=torch.bfloat16)
    (chain,) = (m for m in optimized.modules() if isinstance(m, PackedChain))
    start = x.to(torch.bfloat16)
    with torch.no_grad():
        found, expected = chain(start).float(), chain.plain(start, None).float()
    assert chain.runs_on
    # A residual is added before the rounding, and not after it.
    assert float((found - expected).abs().max()) <= 2**-6 * float(expected.abs().max())


def test_many_threads_at_once() -> None:
    (chain,) = _chains(_settled(nn.Sequential(*[Block() for _ in range(4)])), _x())
    inputs = [torch.randn(1, 8, n, 9) for n in (5, 9, 5, 12)]
    with torch.no_grad():
        expected = [chain.plain(x, None) for x in inputs]

    check_from_many_threads(chain, inputs, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int) -> None:
    (chain,) = _chains(_settled(nn.Sequential(Block(), Block())), _x())
    x, before = torch.randn(2, 8, 10, 9), torch.get_num_threads()
    with torch.no_grad():
        expected = chain(x)
        torch.set_num_threads(threads)
        try:
            assert torch.equal(chain(x), expected)
            chain.eval()  # prepared again, for these threads
            assert torch.equal(chain(x), expected)
        finally:
            torch.set_num_threads(before)
