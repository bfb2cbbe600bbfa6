"""Models that cannot be captured as a whole are taken part by part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnsep
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from dnnsep.graph.runner import Runner
from tests.graph.models import Block, assert_same, check, image, kinds, settled
from tests.graph.test_optimize import Branching


def _parts(model: nn.Module) -> list[str]:
    """Returns the names of the parts whose ``forward`` was replaced."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module.__dict__.get("forward"), Runner)
    ]


def test_a_branch_that_depends_on_values() -> None:
    """The branch that the example does not take is not prepared, and still right."""
    model = settled(Branching())
    optimized = dnnsep.optimize(model, image().abs())
    found = _parts(optimized)
    assert found[0] == "first"
    assert found[-1] == "head"
    assert len(found) == 3
    (taken,) = (name for name in found if name.startswith("branch."))
    assert_same(optimized, model, (image(),))
    assert_same(optimized, model, (-5 * image().abs(),))
    assert_same(optimized, model, (5 * image().abs(),))
    assert taken in ("branch.0", "branch.1")


class Loop(nn.Module):
    """Repeats a block until its result is large enough."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 3, padding=1)
        self.block = Block()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        y, times = torch.relu(self.stem(x)), 0
        while float(y.abs().max()) < 40 and times < 5:
            y = self.block(y) + y
            times += 1
            if times % 2:
                y = self.norm(y) * 3
        return y, times


def test_a_loop_that_depends_on_values() -> None:
    model = settled(Loop())
    report = check(model, bound=1e-4)
    assert report.notes
    assert report.notes[0].startswith("taken part by part: ")
    assert kinds(report) == ["convolution", "convolution", "separable"]
    with torch.no_grad():
        times = {model(scale * image())[1] for scale in (0.01, 1, 100)}
    assert len(times) > 1
    optimized = dnnsep.optimize(model, image())
    for scale in (0.01, 1, 100):
        assert_same(optimized, model, (scale * image(),), 1e-4)


class Attention(nn.Module):
    """Attention of windows, whose size others want to know."""

    def __init__(self, resolution: int = 3) -> None:
        super().__init__()
        self.resolution = resolution
        self.token_projection = nn.Linear(8, 8)
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        y: Tensor = self.token_projection(F.scaled_dot_product_attention(q, k, v))
        return y


class Reads(nn.Module):
    """Reads attributes of the parts that it calls, and looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.token_projection = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        size = self.attn.resolution
        x = x.to(self.token_projection.weight.device, self.token_projection.weight.dtype)
        if float(x.sum()) > 1e9:
            return x
        n, c, h, w = x.shape
        tokens = x.reshape(n, c, h * w // size, size).permute(0, 2, 3, 1)
        y = self.token_projection(self.norm(tokens)) + self.attn(tokens)
        assert isinstance(self.attn, Attention)
        assert self.attn.token_projection.in_features == 8
        assert self.token_projection.bias is not None
        result: Tensor = y * self.token_projection.weight.mean()
        return result


def test_a_parent_that_reads_attributes_of_its_parts() -> None:
    model = settled(Reads())
    report = check(model, bound=1e-4)
    assert kinds(report) == ["linear"] * 3
    optimized = dnnsep.optimize(model, image())
    assert _parts(optimized) == ["attn", "token_projection"]
    assert not any("differ" in note for note in report.notes)


def test_parts_are_named_by_the_model() -> None:
    asked = []

    def wanted(name: str) -> bool:
        asked.append(name)
        return name != "attn.qkv"

    report = report_of(dnnsep.optimize(settled(Reads()), image(), filter=wanted))
    assert [(e.layers, e.kind) for e in report.entries] == [
        (("attn.qkv",), "left"),
        (("attn.token_projection",), "linear"),
        (("token_projection",), "linear"),
    ]
    assert "token_projection" in asked


class Views(nn.Module):
    """Views a part's result in another shape, which takes that it lies in memory as torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution(x)
        if float(y.sum()) > 1e9:
            return y
        return y.view(y.shape[0], -1)


@pytest.mark.xfail(strict=True, reason="results lie channels-last, where torch's would not")
def test_a_parent_that_views_a_part_s_result() -> None:
    model = settled(Views())
    optimized = dnnsep.optimize(model, image())
    with torch.no_grad():
        assert difference(optimized(image()), model(image())) < 1e-5
    assert kinds(report_of(optimized)) == ["convolution"]


@pytest.mark.xfail(strict=True, reason="results lie channels-last, where torch's would not")
def test_results_of_a_whole_model_can_be_viewed() -> None:
    optimized = dnnsep.optimize(settled(nn.Sequential(nn.Conv2d(8, 4, 3))), image())
    with torch.no_grad():
        y = optimized(image())
    assert y.view(2, -1).shape == (2, 4 * 8 * 7)


class Nested(nn.Module):
    """Parts that cannot be captured within parts that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.branching, self.last = Branching(), nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.softmax = nn.Softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branching(x)
        if bool(torch.isnan(y).any()):
            return x
        z: Tensor = self.softmax(self.last(y))
        return z


def test_parts_of_parts() -> None:
    model = settled(Nested())
    optimized = dnnsep.optimize(model, image())
    found = _parts(optimized)
    assert "branching.first" in found
    assert "branching.head" in found
    assert "last" in found
    assert not {"unused", "softmax", "branching"} & set(found)
    assert_same(optimized, model, (image(),))


def test_a_part_that_is_called_in_several_ways() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Scaled()

        def forward(self, x: Tensor) -> list[Tensor]:
            if float(x.sum()) > 1e9:
                return [x]
            return [
                self.part(x),
                self.part(x, scale=2),
                self.part(x=x[:1], scale=x.mean()),
                self.part(x[..., :4]),
            ]

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor, scale: Any = 1) -> Tensor:
            y: Tensor = self.convolution(x)
            result: Tensor = y * scale
            return result

    model = settled(Calls())
    assert kinds(check(model)) == ["convolution"]
    optimized = dnnsep.optimize(model, image())
    with torch.no_grad():
        optimized(image())
    assert len(dnnsep.what_ran(optimized)) >= 4


def test_changed_parameters_of_parts_are_seen() -> None:
    model = settled(Loop())
    optimized = dnnsep.optimize(model, image())
    for each in (model, optimized):
        assert isinstance(each, Loop)
        with torch.no_grad():
            each.block.project.weight.mul_(0.5)
            each.stem.weight.mul_(2)
    assert_same(optimized, model, (image(),), 1e-4)


def test_gradients_of_a_model_in_parts() -> None:
    model = settled(Branching())
    optimized = dnnsep.optimize(model, image())
    for each in (model, optimized):
        each(image()).sum().backward()
    for a, b in zip(model.parameters(), optimized.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_nothing_of_a_model_can_be_captured() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight) if bool(x.sum() < 1e9) else x

    report = check(Looks().eval())
    assert not report.entries
    assert report.notes[0].startswith("taken part by part: ")
    assert len(report.notes) == 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_model_in_parts_keeps_its_dtype(dtype: torch.dtype | None) -> None:
    optimized = dnnsep.optimize(settled(Branching()), image(), dtype=dtype)
    with torch.no_grad():
        assert optimized(image()).dtype is torch.float32
        assert optimized.head.weight.dtype is (dtype or torch.float32)  # type: ignore[union-attr]
