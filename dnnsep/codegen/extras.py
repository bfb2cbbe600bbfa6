"""What a kernel takes beside its input."""

from __future__ import annotations

from dataclasses import dataclass

from dnnsep.codegen.layer import Layer


@dataclass(frozen=True)
class Extras:
    """What a kernel takes beside x.

    ``residual``: values like the output's are added to the sums before the last activation.
    ``scale``: the input of a pointwise convolution is multiplied by a number for each image and
    channel.
    """

    residual: bool = False
    scale: bool = False

    def check(self, layer: Layer) -> None:
        """Raises ValueError where a kernel of the layer cannot take these."""
        if self.residual and layer.product is None:
            raise ValueError("residual: only a layer that sums over channels takes one")
        if self.scale and (layer.source is not None or layer.product is None):
            raise ValueError("scale: only a pointwise convolution takes one")


PLAIN = Extras()
