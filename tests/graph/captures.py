"""Captured models for tests: in float64, so that a wrong rule cannot hide in rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dnnsep.graph.capture import Captured, capture
from dnnsep.graph.constants import constants

Pass = Callable[[fx.GraphModule], object]


class Function(nn.Module):
    """A model of a function of its layers, by name, and its inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def image(channels: int = 6, height: int = 9, width: int = 8, batch: int = 2) -> Tensor:
    """Returns a random image (N, C, H, W)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def settled(model: nn.Module) -> Any:
    """Returns a model in eval mode and float64, with normalisations that do something."""
    generator = torch.Generator().manual_seed(5)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            if layer.affine:
                nn.init.normal_(layer.weight, 1, 0.2, generator)
                nn.init.normal_(layer.bias, 0, 0.2, generator)
    return model.double().eval()


Case = tuple[tuple[Tensor, ...], list[Tensor]]


def cases(model: nn.Module, *inputs: Tensor) -> list[Case]:
    """Returns some inputs, and others of the same shapes, each with a model's flat outputs."""
    found = []
    for given in (inputs, tuple(2 * x.flip(-1) - 0.25 for x in inputs)):
        with torch.no_grad():
            found.append((given, pytree.tree_leaves(model(*(x.clone() for x in given)))))
    return found


def difference(cases: list[Case], captured: Captured) -> float:
    """Returns the largest difference of the graph's outputs from the model's, relative to the
    largest of them."""
    largest = 0.0
    for given, expected in cases:
        with torch.no_grad():
            found = captured.graph_module(*captured.flatten(given))
        for right, mine in zip(expected, found, strict=True):
            assert mine.shape == right.shape
            assert mine.dtype == right.dtype
            scale = max(1e-30, right.abs().max().item())
            largest = max(largest, (mine - right).abs().max().item() / scale)
    return largest


def check(model: nn.Module, *inputs: Tensor, passes: tuple[Pass, ...] = ()) -> Counter[str]:
    """Captures a model and applies passes, each of which must keep what it computes and the values
    that nodes say they have.

    Returns how often each operator is left outside of the constants, activations by their names.
    """
    captured = capture(settled(model), inputs)
    expected = cases(model, *inputs)
    assert difference(expected, captured) < 1e-12
    for change in passes:
        change(captured.graph_module)
        assert difference(expected, captured) < 1e-12
        check_values(captured.graph_module, *inputs)
    return operators(captured.graph_module)


def check_values(graph_module: fx.GraphModule, *inputs: Tensor) -> None:
    """Fails if a node's value is of another shape or dtype than its meta["val"] says."""

    class Checker(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.op != "output":
                assert "layer" in n.meta
            if isinstance(value, Tensor):
                assert n.meta["val"].shape == value.shape, n
                assert n.meta["val"].dtype == value.dtype, n
            return value

    with torch.no_grad():
        Checker(graph_module).run(*inputs)


def operators(graph_module: fx.GraphModule) -> Counter[str]:
    """Returns how often each operator occurs outside of the constants."""
    inner = constants(graph_module.graph)
    calls = [n for n in graph_module.graph.nodes if n.op == "call_function" and n not in inner]
    return Counter(_name(node) for node in calls)


def calls(graph_module: fx.GraphModule, name: str) -> list[fx.Node]:
    """Returns the nodes that call an operator, by its name in ``operators``."""
    return [n for n in graph_module.graph.nodes if n.op == "call_function" and _name(n) == name]


def _name(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).removeprefix("aten::")
    return str(node.args[1]) if target.__name__ == "activation" else str(target.__name__)
