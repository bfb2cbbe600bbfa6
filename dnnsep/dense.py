"""An ordinary convolution as a problem that the fused kernel can run."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dnnsep.problem import Problem


@dataclass(frozen=True)
class Dense(Problem):
    """A convolution without groups.

    In the place of a depthwise stage the inputs under the kernel are laid side by side, in the
    order of the kernel's rows, its columns, the channels: these are the channels between the
    stages, and the pointwise weights are the convolution's. ``bias`` is the pointwise stage's
    alone, and the first of the ``activations`` must be "none".
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channel_multiplier != 1 or self.activations[0] != "none":
            raise ValueError("a dense convolution has one stage: no multiplier, one activation")

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
