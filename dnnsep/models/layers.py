"""Lists the layers of a model with their parameters and multiply-adds. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from dnnsep.nn.module import SeparableConv2d


@dataclass(frozen=True)
class LayerCost:
    """A layer of a model as an example calls it.

    ``macs`` are the multiply-adds of all its calls; they are counted for convolutions and linear
    layers, without biases, and are 0 for others. ``output`` is the shape that the last call
    returned.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int

    @property
    def flops(self) -> int:
        """Returns two operations for each multiply-add."""
        return 2 * self.macs


def layers(model: nn.Module, *example: Tensor) -> list[LayerCost]:
    """Returns the layers that have parameters of their own, in the order of their first calls."""
    costs: dict[nn.Module, LayerCost] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, SeparableConv2d):  # it does not call its two convolutions as modules
            *batch, _, height, width = output.shape
            for convolution in (module.depthwise, module.pointwise):
                add(convolution, (*batch, convolution.out_channels, height, width))
        elif isinstance(output, Tensor):
            add(module, tuple(output.shape))

    def add(module: nn.Module, output: tuple[int, ...]) -> None:
        count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if count:
            before = costs[module].macs if module in costs else 0
            macs = before + _macs(module, output)
            costs[module] = LayerCost(names[module], type(module).__name__, output, count, macs)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return list(costs.values())


def _macs(module: nn.Module, output: tuple[int, ...]) -> int:
    """Returns the multiply-adds of one call that returns a tensor of shape ``output``."""
    if isinstance(module, nn.Conv2d):
        taps = module.kernel_size[0] * module.kernel_size[1]
        return prod(output) * module.in_channels // module.groups * taps
    if isinstance(module, nn.Linear):
        return prod(output) * module.in_features
    return 0
