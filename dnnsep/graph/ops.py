"""The operators of canonical graphs that are not ATen's, as functions that run in eager torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from dnnsep.backends.tensors import TORCH_ACTIVATIONS


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Returns the convolution of (N, C, H, W) with a weight (OC, C / groups, kh, kw).

    ``padding`` is what zeros are added (top, bottom, left, right); a negative number crops.
    ``stride`` and ``dilation`` are (h, w).
    """
    top, bottom, left, right = padding
    if top == bottom >= 0 and left == right >= 0:
        return F.conv2d(x, weight, bias, list(stride), [top, left], list(dilation), groups)
    x = F.pad(x, [left, right, top, bottom])
    return F.conv2d(x, weight, bias, list(stride), [0, 0], list(dilation), groups)


def activation(x: Tensor, name: str) -> Tensor:
    """Returns an activation, by its name in dnnsep.activations, of each element."""
    return TORCH_ACTIVATIONS[name].function(x)


def channel_mean(x: Tensor) -> Tensor:
    """Returns the mean of (N, C, 1, 1) over its channels, in the place of each of them."""
    return x.mean(1, keepdim=True).expand_as(x)


def mean_square(x: Tensor) -> Tensor:
    """Returns the mean of the squares of (N, C, H, W) over the pixels: (N, C, 1, 1)."""
    return x.square().mean((2, 3), keepdim=True)
