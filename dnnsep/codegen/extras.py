"""What a kernel takes beside its input, and how its tensors lie in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dnnsep.codegen.layer import Layer
from dnnsep.codegen.stages.residual import Residual
from dnnsep.dtypes import PRECISIONS


@dataclass(frozen=True)
class Pitches:
    """Elements from one pixel to the next in memory: of the input, the output, the residual."""

    x: int
    y: int
    residual: int


@dataclass(frozen=True)
class Extras:
    """What a kernel takes beside x, and the slices of wider tensors that it reads and writes.

    ``residual``: values like the output's are added to the sums before the last activation, or
    ``after`` it. ``scale``: the input of a pointwise convolution is multiplied by a number for each
    image and channel.

    The pitches are elements from one pixel to the next, of the input, the output and the residual;
    0 where pixels follow each other directly. An image is height x width pixels of such a pitch,
    and images follow each other. What is between a pixel's channels and the next pixel is neither
    read nor written. A kernel with a ``y_pitch`` makes no streaming stores.
    """

    residual: bool = False
    scale: bool = False
    after: bool = False
    x_pitch: int = 0
    y_pitch: int = 0
    residual_pitch: int = 0

    def check(self, layer: Layer) -> None:
        """Raises ValueError where a kernel of the layer cannot take these."""
        if PRECISIONS[layer.dtype].quantized:
            if self.scale or self.after:
                raise ValueError("scale, after: a quantised layer takes neither")
            if self.residual and layer.product is None:
                raise ValueError("residual: a depthwise layer of bytes takes none")
        if self.residual and layer.product is None and layer.source is None:
            raise ValueError("residual: only a layer with weights takes one")
        if self.scale and (layer.source is not None or layer.product is None):
            raise ValueError("scale: only a pointwise convolution takes one")
        for name, there in (("after", self.after), ("residual_pitch", self.residual_pitch)):
            if there and not self.residual:
                raise ValueError(f"{name}: there is no residual")
        for name, channels in (
            ("x_pitch", layer.channels),
            ("y_pitch", layer.out_channels),
            ("residual_pitch", layer.out_channels),
        ):
            pitch = getattr(self, name)
            if pitch and pitch < channels:
                raise ValueError(f"{name}={pitch}: a pixel has {channels} channels")

    @property
    def dense(self) -> Extras:
        """The same in memory of their own: what plans are chosen for."""
        return replace(self, x_pitch=0, y_pitch=0, residual_pitch=0)

    def pitches(self, layer: Layer) -> Pitches:
        """Returns the pitches of a layer's tensors."""
        out = layer.out_channels
        return Pitches(
            self.x_pitch or layer.channels, self.y_pitch or out, self.residual_pitch or out
        )

    def added(self, layer: Layer) -> Residual | None:
        """Returns the residual of a layer, if it takes one."""
        return Residual(self.pitches(layer).residual, self.after) if self.residual else None


PLAIN = Extras()
