"""Blocks as torch modules, built of the layers that their networks have, batch norms among them.
Imports torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dnnsep.backends.tensors import TORCH_ACTIVATIONS
from dnnsep.block import Block

# Layer scales start at this value.
_SCALE = 1e-6


class MBConv(nn.Module):
    """An inverted residual block, from (N, C, H, W) to (N, OC, OH, OW)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        act = TORCH_ACTIVATIONS[block.activation].module
        size = block.expanded
        self.expansion = nn.Sequential()
        if block.has_expansion:
            self.expansion = nn.Sequential(*_pointwise(block.in_channels, size), act())
        convolution = nn.Conv2d(
            size, size, block.kernel, block.stride, block.padding, groups=size, bias=False
        )
        self.depthwise = nn.Sequential(convolution, nn.BatchNorm2d(size), act())
        self.excitation = SqueezeExcitation(block) if block.squeezed else nn.Identity()
        self.projection = nn.Sequential(*_pointwise(size, block.out_channels))
        self.has_residual = block.has_residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.projection(self.excitation(self.depthwise(self.expansion(x))))
        return y + x if self.has_residual else y


class SqueezeExcitation(nn.Module):
    """Scales each channel of (N, C, H, W) by what all channels' means make of it."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        between, gate = (TORCH_ACTIVATIONS[name].module() for name in block.squeezed_activations)
        self.reduce = nn.Conv2d(block.expanded, block.squeezed, 1)
        self.between = between
        self.expand = nn.Conv2d(block.squeezed, block.expanded, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        scales: Tensor = self.gate(self.expand(self.between(self.reduce(means))))
        return x * scales


class ConvNeXt(nn.Module):
    """A ConvNeXt block, from (N, C, H, W) to the same shape."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        channels = block.in_channels
        self.depthwise = nn.Conv2d(
            channels, channels, block.kernel, padding=block.padding, groups=channels
        )
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expansion = nn.Linear(channels, block.expanded)
        self.activation = nn.GELU()
        self.projection = nn.Linear(block.expanded, channels)
        self.scale = nn.Parameter(torch.full((channels,), _SCALE))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        rows = self.projection(self.activation(self.expansion(rows)))
        y: Tensor = rows.permute(0, 3, 1, 2) * self.scale.reshape(1, -1, 1, 1)
        return y + x


def module_of(block: Block) -> nn.Module:
    """Returns a block as a new module in f32, in training mode, with values as torch's layers start
    with them."""
    return MBConv(block) if block.kind == "mbconv" else ConvNeXt(block)


def _pointwise(channels: int, out: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out)
