"""A layer as a tuple of stages: what of a problem does not depend on its input's size.

Everything static about a layer is here and nothing else is: it keys packed weights (with a panel's
width), and with an extent (the problem's sizes, a plan) the compiled kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.dots import Dot, VectorDot, dots_for
from dnnsep.codegen.dots.base import STEPS_AT_ONCE
from dnnsep.codegen.lang.dtype import ELEMENTS, output_element
from dnnsep.codegen.lang.emit import Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.rates import rates
from dnnsep.codegen.stages.base import Sink, Source, Stage, Window
from dnnsep.codegen.stages.bytedepthwise import ByteDepthwise
from dnnsep.codegen.stages.depthwise import Depthwise
from dnnsep.codegen.stages.gather import Gather
from dnnsep.codegen.stages.matmul import Matmul
from dnnsep.codegen.stages.mean import Mean
from dnnsep.codegen.stages.residual import Residual
from dnnsep.codegen.trim import Kept, trimmed
from dnnsep.dtypes import PRECISIONS
from dnnsep.problem import Problem


def stages_of(problem: Problem) -> tuple[Stage, ...]:
    """Returns the stages that a problem is, in order."""
    window = Window(problem.kernel, problem.stride, problem.padding, problem.dilation)
    ic, oc, dtype, multiplier = (
        problem.in_channels,
        problem.out_channels,
        problem.dtype,
        problem.channel_multiplier,
    )
    if problem.kind == "mean":
        return (Mean(ic, dtype),)
    if problem.kind in ("depthwise", "separable"):
        first, *second = problem.activations
        depthwise: Source = Depthwise(ic, multiplier, window, first, dtype)
        if problem.precision.quantized:
            between = problem.kind == "separable"
            depthwise = ByteDepthwise(ic, multiplier, window, first, dtype, between)
        return (depthwise, *(Matmul(problem.mid_channels, oc, name, dtype) for name in second))
    product = Matmul(ic * window.taps, oc, problem.activations[0], dtype)
    return (product,) if window.trivial else (Gather(ic, window, dtype), product)


@dataclass(frozen=True)
class Layer:
    """Stages for a way of multiplying on a CPU's vectors. Where they do not need all taps of a
    problem's kernel, ``kept`` says which of its weights are theirs."""

    stages: tuple[Stage, ...]
    isa: Isa
    dot: Dot
    kept: Kept | None = None

    @property
    def source(self) -> Source | None:
        """The stage that fills a tile, or the output where no product follows it."""
        first = self.stages[0]
        return first if isinstance(first, Source) else None

    @property
    def product(self) -> Matmul | None:
        """The stage that multiplies a tile, or the input itself where no stage fills one."""
        last = self.stages[-1]
        return last if isinstance(last, Matmul) else None

    @property
    def window(self) -> Window:
        """Where the layer reads its input."""
        return self.source.window if self.source is not None else Window((1, 1))

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.stages[0].channels

    @property
    def out_channels(self) -> int:
        return self.product.out_channels if self.product is not None else self.channels

    @property
    def dtype(self) -> str:
        """The problem's."""
        return self.stages[0].dtype

    @property
    def reads_input(self) -> bool:
        """Whether the product can read the input itself, with no copy in a tile."""
        if self.source is not None or self.product is None or self.dtype.startswith("s8"):
            return False  # a tile holds bytes without a sign
        return self.dot.reads(self.product.channels)

    def gathered(self, scaled: bool = False) -> Layer:
        """Returns the layer with its input copied into a tile first, maybe multiplied by a scale,
        where no stage fills a tile; its weights are packed alike."""
        if self.source is not None or self.product is None:
            return self
        gather = Gather(self.product.channels, self.window, self.dtype, scaled)
        return replace(self, stages=(gather, *self.stages))

    @property
    def skips_taps(self) -> bool:
        """Whether products leave out taps of an ordinary convolution's kernel where they are
        outside the image: on vectors, where there may be any, and each is whole rounds."""
        source, dot = self.source, self.dot
        if not (isinstance(source, Gather) and self.product and isinstance(dot, VectorDot)):
            return False
        if PRECISIONS[self.dtype].quantized:
            return False  # what stands for 0 counts in sums until it is taken off all at once
        padded = source.window.taps > 1 and max(source.window.padding) > 0
        return padded and source.channels % (STEPS_AT_ONCE * dot.k) == 0

    @property
    def depth(self) -> int:
        """Channels of a tile's row, and rows of the packed matrix."""
        if self.source is not None:
            return self.source.depth(self.isa, self.dot)
        return self.dot.depth(self.product.channels) if self.product else 0

    @property
    def order(self) -> NDArray[np.int64]:
        """Which of the product's channels is at each place of a tile's row; -1 for none."""
        if self.source is not None:
            return self.source.order(self.isa, self.dot)
        assert self.product is not None
        places = np.arange(self.depth)
        return np.where(places < self.product.channels, places, -1)

    @property
    def slowness(self) -> float:
        """How many times as long as ``Dot.cycles`` says products take on this CPU."""
        if self.isa.software_tiles:
            return 1.0
        return rates(self.isa).slowness(self.dot, self.depth)

    @property
    def tile_stride(self) -> int:
        """Elements from one pixel of a tile to the next.

        It is a vector more than the depth where pixels would all start at the same place of a
        cache's ways.
        """
        crowded = self.depth * self.dot.bytes % 1024 == 0
        return self.depth + (self.isa.lanes * 4 // self.dot.bytes if crowded else 0)

    def sink(self, y_pitch: int, residual: Residual | None) -> Sink:
        """Returns where the source writes: into an output with such a pitch where no product
        follows it, with the residual added."""
        if self.product is not None:
            return TileSink(self.isa, self.dot, self.tile_stride)
        return OutputSink(self.isa, self.dtype, y_pitch, residual)


@lru_cache(4096)
def layer_of(problem: Problem, isa: Isa) -> Layer:
    """Returns a problem's layer, multiplied in the way that is the fastest for it on this CPU,
    without the taps of its kernel that never meet the image.

    Raises ValueError with the reason where the generator has no kernel for it.
    """
    if problem.kind == "depthwise" and problem.channel_multiplier > 1:
        raise ValueError("no kernel for a depthwise convolution alone with a multiplier")
    if problem.precision.quantized and problem.channel_multiplier > 1:
        raise ValueError(f"no kernel for a multiplier in {problem.dtype}")
    smaller, kept = trimmed(problem)
    stages, dots = stages_of(smaller), dots_for(problem.dtype, isa)
    layers = [Layer(stages, isa, dot, kept) for dot in dots]
    if layers[0].product is None:
        return next(layer for layer in layers if not layer.dot.in_tiles)
    if isa.software_tiles or len(layers) == 1:
        return layers[0]
    return min(layers, key=lambda layer: _cycles_of_pixel(layer, problem.out_pixels))


def _cycles_of_pixel(layer: Layer, out_pixels: int) -> float:
    """Returns the cycles that the stages of a layer take for each of so many output pixels, by the
    rates measured on this CPU."""
    isa, dot, product = layer.isa, layer.dot, layer.product
    assert product is not None
    used = layer if layer.reads_input else layer.gathered()
    source = used.source.cycles(isa, dot) if used.source is not None else 0.0
    pixels = min(dot.pixels(isa, dot.vectors), out_pixels)
    all_vectors = product.panels(isa, 1)
    panels = [min(dot.vectors, all_vectors - first) for first in range(0, all_vectors, dot.vectors)]
    cycles = sum(dot.cycles(isa, pixels, vectors, used.depth) for vectors in panels)
    return source + cycles * used.slowness / pixels


@dataclass(frozen=True)
class TileSink:
    """A tile of a product: whole blocks, of which what is beyond the channels is never read."""

    isa: Isa
    dot: Dot
    stride: int
    residual: None = None

    @property
    def element(self) -> ir.Type:
        return self.dot.element

    def store(self, code: Code, values: list[ir.Value], place: ir.Value, lanes: int | None) -> None:
        self.dot.store_block(code, self.isa, values, place)


@dataclass(frozen=True)
class OutputSink:
    """The output of a layer of one stage: only the channels that it has are written."""

    isa: Isa
    dtype: str
    stride: int
    residual: Residual | None

    @property
    def element(self) -> ir.Type:
        return output_element(self.dtype).type

    def store(self, code: Code, values: list[ir.Value], place: ir.Value, lanes: int | None) -> None:
        ELEMENTS[self.dtype].store_block(code, self.isa, values, place, lanes)
