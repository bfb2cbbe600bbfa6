"""What a stage of a layer is, and what all stages are written with.

A stage is a frozen dataclass of all that does not depend on an input's size: channels, taps,
activation, dtype. It says in one place how it computes naively (the reference is that), how wrong a
right answer may be, how its weights are packed, what it costs, and how it is emitted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.activations import ACTIVATIONS, Exact
from dnnsep.codegen.dots import Dot
from dnnsep.codegen.lang.emit import Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.stages.residual import Residual
from dnnsep.dtypes import DTYPES, F32
from dnnsep.problem import Pair, Problem
from dnnsep.weights import Weights


class Stage(ABC):
    """One step of a layer of a problem's ``dtype``. ``channels`` are its input's."""

    channels: int
    dtype: str

    def pieces_of_image(self, isa: Isa, runs: int) -> int:
        """Returns the pieces that an image is cut into, whose output is so many runs of pixels."""
        return runs

    def emit_pieces(
        self,
        code: Code,
        isa: Isa,
        image: Image,
        y_pitch: int,
        x: ir.Value,
        y: ir.Value,
        first: ir.Value,
        last: ir.Value,
    ) -> None:
        """Emits the pieces [``first``, ``last``) of all images, each with its pixels in one row,
        from the input ``x`` to the output ``y``, whose pixels are ``y_pitch`` elements apart: of a
        stage that is neither a source nor a product."""
        raise NotImplementedError

    def cycles_alone(self, problem: Problem, isa: Isa, dot: Dot) -> float:
        """Returns the cycles of a problem that is just this stage, as far as the cost model
        knows."""
        raise NotImplementedError

    @abstractmethod
    def naive(self, x: Exact, weights: Weights) -> Exact:
        """Returns the stage's result (N, C, H, W) on x, in float64, by the definition."""

    @abstractmethod
    def bound(self, scale: Exact, error: Exact, weights: Weights) -> tuple[Exact, Exact]:
        """Returns how large the stage's result may be and how far a right one may be off, for an
        input as large as ``scale`` and as far off as ``error``; the weights are absolute values."""


@dataclass(frozen=True)
class Window:
    """Where a kernel meets an image: (h, w) pairs, and the padding (top, bottom, left, right)."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Pair = (1, 1)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def trivial(self) -> bool:
        """Whether each output pixel meets just its own input pixel."""
        return self == Window((1, 1))

    def naive(self, x: Exact) -> Iterator[tuple[int, int, Exact]]:
        """Yields each tap (i, j) with what it meets at every output pixel: (N, C, OH, OW)."""
        (top, bottom, left, right), (sh, sw), (dh, dw) = self.padding, self.stride, self.dilation
        height, width = x.shape[2] + top + bottom, x.shape[3] + left + right
        padded = np.pad(x, ((0, 0), (0, 0), (top, max(bottom, 0)), (left, max(right, 0))))
        padded = padded[:, :, :height, :width]  # negative padding crops
        oh, ow = (
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(
                padded.shape[2:], self.kernel, self.stride, self.dilation, strict=True
            )
        )
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                rows = slice(i * dh, i * dh + sh * (oh - 1) + 1, sh)
                columns = slice(j * dw, j * dw + sw * (ow - 1) + 1, sw)
                yield i, j, padded[:, :, rows, columns]

    def over(self, row: Row, width: int) -> Taps:
        """Returns what meets an image so many pixels wide under a run of output pixels."""
        left, step = self.padding[2], self.dilation[1]

        def meets(pixel: int) -> range:
            first = left - (row.start + pixel) * self.stride[1]  # of tap 0: so far outside
            start = min(self.kernel[1], max(0, -(-first // step)))
            stop = min(self.kernel[1], -(-(first + width) // step))
            return range(start, max(start, stop))

        return Taps(row.width, tuple(meets(pixel) for pixel in range(row.width)))


@dataclass(frozen=True)
class Row:
    """A run of pixels in a row: output columns [start, start + width)."""

    start: int
    width: int


@dataclass(frozen=True)
class Taps:
    """A run's width and, by pixel, the columns of the kernel that meet the image, from the first to
    before the last: two runs with the same taps run the same code. None are those of a single pixel
    that are told at run time."""

    width: int
    columns: tuple[range, ...] | None

    @property
    def known(self) -> tuple[range, ...]:
        """The columns, which are not told at run time."""
        assert self.columns is not None
        return self.columns


@dataclass(frozen=True)
class Image:
    """How an image lies in memory: rows of ``width`` pixels, one after the other, each pixel
    ``pitch`` elements from the next. None is a width that is told at run time."""

    width: int | None
    pitch: int

    @property
    def known_width(self) -> int:
        """The width, which is not told at run time."""
        assert self.width is not None
        return self.width


def told_at_run_time(image: Image, taps: Taps) -> int:
    """Returns how many arguments of a source's function say what is told at run time."""
    return (image.width is None) + 2 * (taps.columns is None)


class Sink(Protocol):
    """Where a stage writes blocks of channels: a tile, or the output, to which the ``residual`` is
    added. ``stride`` is in elements from one pixel to the next."""

    @property
    def element(self) -> ir.Type:
        """LLVM's type of what is written."""

    @property
    def stride(self) -> int: ...

    @property
    def residual(self) -> Residual | None: ...

    def store(self, code: Code, values: list[ir.Value], place: ir.Value, lanes: int | None) -> None:
        """Writes a block, vectors of f32; an output only where its first ``lanes`` are."""


class Source(Stage):
    """A stage that fills a tile for a product: row by row of ``depth`` channels a pixel."""

    window: Window

    @abstractmethod
    def depth(self, isa: Isa, dot: Dot) -> int:
        """Returns the channels of a tile's row, those that only fill it up among them."""

    @abstractmethod
    def order(self, isa: Isa, dot: Dot) -> NDArray[np.int64]:
        """Returns which of the product's channels is at each place of a tile's row; -1 for none."""

    @abstractmethod
    def pack(self, isa: Isa, dot: Dot, weights: Weights) -> NDArray[Any]:
        """Returns the stage's own weights as its code reads them, flat."""

    @abstractmethod
    def packed_bytes(self, isa: Isa, dot: Dot) -> int:
        """Returns the bytes of what ``pack`` returns."""

    @abstractmethod
    def cycles(self, isa: Isa, dot: Dot) -> float:
        """Returns the cycles that a pixel takes, as far as the cost model knows."""

    def cycles_alone(self, problem: Problem, isa: Isa, dot: Dot) -> float:
        return problem.out_pixels * self.cycles(isa, dot)

    @abstractmethod
    def groups(self, isa: Isa) -> int:
        """Returns the groups that the work for a run of pixels falls into."""

    @abstractmethod
    def emit(
        self,
        module: ir.Module,
        name: str,
        isa: Isa,
        dot: Dot,
        image: Image,
        taps: Taps,
        sink: Sink,
        by_groups: bool = False,
    ) -> ir.Function:
        """Returns f(x, weights, target, first, last), which writes one run of pixels of a row into
        ``target``: ``x`` is where the kernel's first row meets the image at the first pixel's first
        tap (maybe outside the image, then not read), and kernel rows [``first``, ``last``) meet the
        image. With ``by_groups`` it has one more argument, the number of the group of the work that
        a call does; where the sink has a residual, one with the address of the run's. What is told
        at run time are the last ones: the image's width, and the first and the end of the columns
        that meet it."""


def gamma(terms: int, roundoff: float) -> float:
    """Returns the relative error bound n·u / (1 - n·u) of a sum of so many terms.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, chapter 3.
    """
    return terms * roundoff / (1 - terms * roundoff)


def bound_of_sum(
    scale: Exact, error: Exact, terms: int, activation: str, dtype: str
) -> tuple[Exact, Exact]:
    """Returns how large activated sums of so many products in f32, stored as dtype, may be and how
    far off.

    ``scale`` are the sums of absolute products, ``error`` what the inputs' errors add to a sum. An
    activation that is applied apart from the sum rounds once more.
    """
    follows = ACTIVATIONS[activation]
    error = (error + gamma(terms + 1, F32.roundoff) * scale) * follows.lipschitz
    error += follows.approximation * F32.roundoff * (1 + scale)
    result = follows.at_zero + scale
    error += (1.0 if activation == "none" else 2.5) * DTYPES[dtype].roundoff * result
    return result, error
