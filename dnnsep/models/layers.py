"""The layers of a model with their parameters and multiply-adds. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from dnnsep.nn.module import SeparableConv2d


@dataclass(frozen=True)
class LayerCost:
    """A layer as an example calls it: its parameters, and its multiply-adds over all calls.

    Multiply-adds are counted of convolutions and linear layers, without biases; FLOPs are twice
    as many. ``output`` is the last call's.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int

    @property
    def flops(self) -> int:
        return 2 * self.macs


def layers(model: nn.Module, *example: Tensor) -> list[LayerCost]:
    """Every layer that has parameters of its own, in the order in which the example meets them."""
    found: dict[nn.Module, LayerCost] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, SeparableConv2d):  # its stages are not called as modules
            *batch, _, height, width = output.shape
            for stage in (module.depthwise, module.pointwise):
                add(stage, (*batch, stage.out_channels, height, width))
        elif isinstance(output, Tensor):
            add(module, tuple(output.shape))

    def add(module: nn.Module, output: tuple[int, ...]) -> None:
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own:
            before = found[module].macs if module in found else 0
            macs = before + _macs(module, output)
            found[module] = LayerCost(names[module], type(module).__name__, output, own, macs)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def _macs(module: nn.Module, output: tuple[int, ...]) -> int:
    if isinstance(module, nn.Conv2d):
        taps = module.kernel_size[0] * module.kernel_size[1]
        return prod(output) * module.in_channels // module.groups * taps
    if isinstance(module, nn.Linear):
        return prod(output) * module.in_features
    return 0
