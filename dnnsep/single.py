"""Convolutions of one stage as problems that the fused kernel can run."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from dnnsep.problem import ACTIVATIONS, Problem


@dataclass(frozen=True)
class Dense(Problem):
    """A convolution without groups.

    In the place of a depthwise stage the inputs under the kernel are laid side by side, in the
    order of the kernel's rows, its columns, the channels: these are the channels between the
    stages, and the pointwise weights are the convolution's. ``bias`` is the pointwise stage's
    alone, and the first of the ``activations`` must be "none".
    """

    known_activations: ClassVar[tuple[str, ...]] = (*ACTIVATIONS, "sigmoid", "hardsigmoid")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channel_multiplier != 1 or self.activations[0] != "none":
            raise ValueError("a dense convolution has no channel_multiplier and one activation")

    @property
    def mid_channels(self) -> int:
        """What a pixel's sum runs over: in_channels * kh * kw."""
        return self.in_channels * prod(self.kernel)

    @property
    def depthwise_shape(self) -> tuple[int, int, int, int]:
        """There are none."""
        return (0, 1, *self.kernel)

    def __str__(self) -> str:
        return f"dense_{super().__str__()}"


@dataclass(frozen=True)
class Depthwise(Problem):
    """A depthwise convolution alone; the second of the ``activations`` must be "none"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channel_multiplier != 1 or self.out_channels != self.in_channels:
            raise ValueError(f"out_channels={self.out_channels}: must equal in_channels")
        if self.activations[1] != "none":
            raise ValueError("a depthwise convolution has one activation")

    @property
    def pointwise_shape(self) -> tuple[int, int, int, int]:
        """There are none."""
        return (0, self.mid_channels, 1, 1)

    def __str__(self) -> str:
        return f"depthwise_{super().__str__()}"


@dataclass(frozen=True)
class Mean(Depthwise):
    """The mean of each channel over all pixels: ``kernel`` is as large as the image, all of its
    weights are 1 / (height * width), and there are no bias, padding or activations."""

    @classmethod
    def over(cls, batch: int, in_channels: int, height: int, width: int, dtype: str) -> Mean:
        size = (height, width)
        return cls(batch, in_channels, in_channels, height, width, size, bias=False, dtype=dtype)

    def __str__(self) -> str:
        return f"mean_{super().__str__()}"
