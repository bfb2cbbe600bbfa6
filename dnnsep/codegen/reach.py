"""Which bytes of its operands a part of a layer reads and writes."""

from __future__ import annotations

from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.layer import Layer
from dnnsep.dtypes import PRECISIONS

# Of each operand of a step the bytes, counted from its start.
Reach = dict[str, range]


def reach_of(layer: Layer, extras: Extras, extent: Extent, pixels: range) -> Reach | None:
    """Returns what computing these of all output pixels reads and writes of x, y, and as the extras
    say of residual and scale: of each no less than the bytes that it does. None where that is not
    by pixels: for a mean."""
    if layer.source is None and layer.product is None:
        return None
    pitches, out = extras.pitches(layer), layer.out_channels
    precision = PRECISIONS[layer.dtype]
    read, written = precision.source.bytes, precision.destination.bytes
    spans = {
        "x": (pixels_read(layer, extent, pixels), pitches.x, layer.channels, read),
        "y": (pixels, pitches.y, out, written),
    }
    if extras.residual:
        spans["residual"] = (pixels, pitches.residual, out, written)
    if extras.scale:
        spans["scale"] = (range(extent.batch), layer.channels, layer.channels, read)
    return {
        name: range(of.start * pitch * size, ((of.stop - 1) * pitch + channels) * size)
        for name, (of, pitch, channels, size) in spans.items()
    }


def pixels_read(layer: Layer, extent: Extent, pixels: range) -> range:
    """Returns the pixels of the input under some of the output, whole rows of them where a kernel
    is larger than a pixel."""
    window = layer.window
    if window.trivial:
        return pixels
    high, wide = extent.out_size(window)
    stride, padding, dilation = window.stride[0], window.padding[0], window.dilation[0]
    (first_image, first_row), (last_image, last_row) = (
        divmod(pixel // wide, high) for pixel in (pixels.start, pixels.stop - 1)
    )
    top = min(max(first_row * stride - padding, 0), extent.height)
    bottom = last_row * stride - padding + (window.kernel[0] - 1) * dilation
    end = min(max(bottom + 1, 0), extent.height)
    first = (first_image * extent.height + top) * extent.width
    last = (last_image * extent.height + end) * extent.width
    return range(first, max(first + 1, last))
