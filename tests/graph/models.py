"""Small models that tests optimize, and what every optimized model has to be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnsep
from dnnsep.graph.difference import difference
from dnnsep.graph.optimize import report_of
from dnnsep.graph.report import Report
from dnnsep.graph.runner import Runner


def depthwise(channels: int = 8, **arguments: Any) -> nn.Conv2d:
    """Returns a depthwise 3x3 convolution that keeps the image's size."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, **arguments)


class Block(nn.Module):
    """MobileNet V2's: expansion, depthwise, projection, and the input again."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = depthwise(16, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.between = between or nn.Identity()
        self.project = nn.Conv2d(16, 8, 1, bias=False)
        self.last = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(F.relu6(self.norm(self.depthwise(self.expand(x)))))
        projected: Tensor = self.last(self.project(y))
        return x + projected


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Function(nn.Module):
    """A function as a module, with the modules that it calls."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*self.parts, *arguments)


def settled(model: nn.Module) -> nn.Module:
    """Returns a model in eval mode, with normalisations that do something."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point() and value.dim() <= 1:
            value.copy_(0.5 * torch.randn(value.shape, generator=generator) + 0.5)
        elif value.is_floating_point():
            spread = float(value[0].numel()) ** -0.5
            value.copy_(spread * torch.randn(value.shape, generator=generator))
    return model.eval()


def image(channels: int = 8, seed: int = 3, batch: int = 2) -> Tensor:
    """Returns small images (N, C, 10, 9)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 10, 9, generator=generator)


def check(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | None = None,
    bound: float = 1e-5,
    **options: Any,
) -> Report:
    """Returns the report of a model once optimized: its answers must be the model's, on another
    input and in another layout too, and the model must be as it was."""
    example = image() if example is None else example
    example = example if isinstance(example, tuple) else (example,)
    before = copy.deepcopy(model.state_dict())
    optimized = dnnsep.optimize(model, example, **options)
    assert_same(optimized, model, example, bound)
    assert "forward" not in model.__dict__
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    return report_of(optimized)


def assert_same(
    optimized: nn.Module, model: nn.Module, example: tuple[Any, ...], bound: float = 1e-5
) -> None:
    """Asserts that two models agree on an example, on other values, and on other layouts."""
    for change in (_copied, _other_values, _channels_last, _with_gaps):
        changed = tuple(change(value) for value in example)
        with torch.no_grad():
            expected = model(*map(_copied, changed))
            found = optimized(*map(_copied, changed))
            again = optimized(*map(_copied, changed))
        assert difference(found, expected) <= bound, change.__name__
        assert difference(again, expected) <= bound, f"{change.__name__}, the second time"


def _copied(value: Any) -> Any:
    """Returns a tensor that lies in memory as another, since models may write into inputs."""
    if not isinstance(value, Tensor):
        return value
    reach = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    memory = value.detach().as_strided((reach + 1,), (1,)).clone()
    return memory.as_strided(value.shape, value.stride(), 0)


def _other_values(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.flip(-1) * 2
    return value


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _with_gaps(value: Any) -> Any:
    """Returns a tensor of which memory holds every second element only."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
        return torch.stack([value, value], -1)[..., 0]
    return value


def left(report: Report) -> list[str]:
    """Returns why layers were left to torch."""
    return [entry.reason for entry in report.entries if entry.kind == "left"]


def kinds(report: Report) -> list[str]:
    """Returns what became of each layer, in order."""
    return [entry.kind for entry in report.entries]


def runner_of(model: nn.Module) -> Runner:
    """Returns what took the place of a model's ``forward``."""
    found = model.__dict__["forward"]
    assert isinstance(found, Runner)
    return found


def ran(model: nn.Module) -> int:
    """Returns for how many kinds of input a model has been prepared as a network."""
    return len(runner_of(model).prepared)


def check_from_many_threads(model: nn.Module, inputs: list[Tensor], expected: list[Tensor]) -> None:
    """Asserts that eight threads at once get what one got, to the bit."""

    def work(start: int) -> bool:
        numbers = [n % len(inputs) for n in range(start, start + 40)]
        with torch.no_grad():
            return all(torch.equal(model(inputs[n]), expected[n]) for n in numbers)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
