"""The members of a cascade: steps, as a schedule sees them and as they are called.

Each kind of step has a link. Beside what a schedule has to know (``schedule.Link``) it has the
``step`` and its ``kernel``; ``out``, the tensor that it writes, and ``operands``, those that it
reads, by the names of the task's fields; ``is_dense`` and ``gaps``, whether pixels of the one and
of the others follow each other directly; and ``calls(first, end)``, the calls that make these
pieces.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from dnnsep.codegen.extent import Extent, output_rows
from dnnsep.codegen.generalstep import GeneralStep
from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.plan import Plan, first_pixel, range_part
from dnnsep.codegen.reach import pixels_read
from dnnsep.codegen.rowwise.step import PixelReductionStep, RowwiseStep
from dnnsep.codegen.step import Step
from dnnsep.codegen.weigh import layer_for
from dnnsep.dtypes import TENSOR_DTYPES
from dnnsep.problem import Problem

# A piece of a linear layer that is told its sizes has so many rows.
_ROWS = 32


@dataclass(frozen=True, eq=False)
class Member:
    """A step of a cascade, and the number of the member that writes an operand, by its name; its
    other operands are tensors."""

    step: Step
    reads: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dense:
    """A tensor of so many pixels of channels of a dtype, of no gaps."""

    pixels: int
    channels: int
    dtype: str

    @property
    def pixel_bytes(self) -> int:
        return self.channels * TENSOR_DTYPES[self.dtype].bytes

    @property
    def bytes(self) -> int:
        return self.pixels * self.pixel_bytes


@dataclass(frozen=True)
class KernelCall:
    """A call of a kernel with a task of its own; ``offsets`` are the bytes from the first pixel of
    an operand to where it begins, where that is not there."""

    task: ctypes.Structure
    part: int
    offsets: Mapping[str, int] = field(default_factory=dict)


class _StepLink:
    """What all links have in common."""

    step: LayerStep | GeneralStep | RowwiseStep | PixelReductionStep
    out: Dense

    @property
    def kernel(self) -> Function:
        return self.step.kernel

    @property
    def out_bytes(self) -> int:
        return self.out.pixel_bytes


class LayerLink(_StepLink):
    """A layer: any range of its pieces is a call."""

    step: LayerStep

    def __init__(self, step: LayerStep, reads: Mapping[str, int]) -> None:
        self.step = replace(step, plan=step.plan.by_ranges)
        self.reads = reads
        extras, problem = step.extras, step.problem
        if problem.kind == "mean":
            raise ValueError("a mean is no part of a cascade")
        self.starts = _starts(problem, self.step.plan)
        precision = problem.precision
        self.out = Dense(problem.out_pixels, problem.out_channels, precision.destination.name)
        self.is_dense = not extras.y_pitch
        pixels, channels = Extent.of(problem).pixels, problem.in_channels
        self.operands = {"x": Dense(pixels, channels, precision.source.name)}
        if extras.residual:
            self.operands["residual"] = self.out
        if extras.scale:
            self.operands["scale"] = Dense(problem.batch, channels, precision.source.name)
        self.gaps = {"x": bool(extras.x_pitch), "residual": bool(extras.residual_pitch)}

    @property
    def width(self) -> int:
        """Pixels of a row where the kernel is larger than a pixel, else 0."""
        return 0 if self.step.layer.window.trivial else output_rows(self.step.problem)[1]

    def read(self, operand: str, first: int, end: int) -> range:
        problem, plan = self.step.problem, self.step.plan
        pixels = range(self.starts[first], self.starts[end])
        if operand == "residual":
            return pixels
        if operand == "scale":
            of_image = problem.out_pixels // problem.batch
            return range(pixels.start // of_image, (pixels.stop - 1) // of_image + 1)
        layer = layer_for(problem, plan)
        if plan.short_rows and layer.source is not None:
            # A tile is filled with the whole rows that it touches.
            width = output_rows(problem)[1]
            pixels = range(pixels.start // width * width, -(-pixels.stop // width) * width)
        return pixels_read(layer, Extent.of(problem), pixels)

    def calls(self, first: int, end: int) -> Iterator[KernelCall]:
        yield KernelCall(self.step.task(), range_part(first, end))


class GeneralLink(_StepLink):
    """A layer whose kernel is told its sizes: a piece is a row of its output, or of a linear layer
    some of its rows, and any range of them is a call."""

    step: GeneralStep

    def __init__(self, step: GeneralStep, reads: Mapping[str, int]) -> None:
        self.step, self.reads = step, reads
        problem, extras = step.problem, step.general.extras
        rows, width = output_rows(problem)
        is_linear = problem.kind == "linear"
        self._length = _ROWS if is_linear else width
        self.starts = (*range(0, rows * width, self._length), rows * width)
        self.width = 0 if step.layer.window.trivial else width
        self.out = Dense(rows * width, problem.out_channels, problem.dtype)
        self.is_dense = not extras.y_pitch
        channels = problem.in_channels
        self.operands = {"x": Dense(step.extent.pixels, channels, problem.dtype)}
        if extras.residual:
            self.operands["residual"] = self.out
        if extras.scale:
            self.operands["scale"] = Dense(problem.batch, channels, problem.dtype)
        self.gaps = {"x": bool(extras.x_pitch), "residual": bool(extras.residual_pitch)}

    def read(self, operand: str, first: int, end: int) -> range:
        pixels = range(self.starts[first], self.starts[end])
        if operand == "residual":
            return pixels
        if operand == "scale":
            of_image = self.out.pixels // self.operands["scale"].pixels
            return range(pixels.start // of_image, (pixels.stop - 1) // of_image + 1)
        return pixels_read(self.step.layer, self.step.extent, pixels)

    def calls(self, first: int, end: int) -> Iterator[KernelCall]:
        yield KernelCall(self.step.task_of(range(self.starts[first], self.starts[end])), 0)


class RowwiseLink(_StepLink):
    """An expression of each pixel: a piece is a pixel, or as many as are computed as one."""

    step: RowwiseStep
    width = 0

    def __init__(self, step: RowwiseStep, reads: Mapping[str, int]) -> None:
        self.step, self.reads = step, reads
        special = step.special
        if any(operand.kind not in ("pixels", "channels") for operand in special.inputs):
            raise ValueError("a cascade has no operand of a number for each pixel or image")
        self._pixels = step.images * step.pixels
        self.starts = (*range(0, self._pixels, special.together), self._pixels)
        self.out = Dense(self._pixels, special.channels, special.dtype)
        self.is_dense = step.y_pitch == special.channels
        self.operands, self.gaps = {}, {}
        for number, operand in enumerate(special.inputs):
            pixels = self._pixels if operand.kind == "pixels" else 1
            self.operands[f"x{number}"] = Dense(pixels, special.channels, special.dtype_of(operand))
            self.gaps[f"x{number}"] = step.pitches[number] != special.channels

    def read(self, operand: str, first: int, end: int) -> range:
        pixels = range(self.starts[first], self.starts[end])
        return pixels if self.operands[operand].pixels == self._pixels else range(1)

    def calls(self, first: int, end: int) -> Iterator[KernelCall]:
        pixels = range(self.starts[first], self.starts[end])
        step = replace(self.step, images=1, pixels=len(pixels), threads=1)
        offsets = {"y": pixels.start * self.out_bytes}
        for number, operand in enumerate(step.special.inputs):
            if operand.kind == "pixels":
                size = TENSOR_DTYPES[step.special.dtype_of(operand)].bytes
                offsets[f"x{number}"] = pixels.start * step.pitches[number] * size
        yield KernelCall(step.task(), 0, offsets)


class ReductionLink(_StepLink):
    """A reduction of each image's pixels: a piece is an image, its one output pixel."""

    step: PixelReductionStep
    width = 0

    def __init__(self, step: PixelReductionStep, reads: Mapping[str, int]) -> None:
        self.step, self.reads = step, reads
        special = step.special
        self.starts = range(step.images + 1)
        self.out = Dense(step.images, special.channels, special.dtype)
        self.is_dense = step.y_pitch == special.channels
        self.operands = {"x0": Dense(step.images * step.pixels, special.channels, special.dtype)}
        self.gaps = {"x0": step.pitch != special.channels}

    def read(self, operand: str, first: int, end: int) -> range:
        return range(first * self.step.pixels, end * self.step.pixels)

    def calls(self, first: int, end: int) -> Iterator[KernelCall]:
        step = replace(self.step, images=1, threads=1)
        of_image = step.pixels * step.pitch * TENSOR_DTYPES[step.special.dtype].bytes
        for image in range(first, end):
            offsets = {"x0": image * of_image, "y": image * self.out_bytes}
            yield KernelCall(step.task(), 0, offsets)


@lru_cache(1024)
def _starts(problem: Problem, plan: Plan) -> tuple[int, ...]:
    """Returns the first output pixel of each piece of a plan, and the number of all."""
    return tuple(first_pixel(problem, plan, piece) for piece in range(plan.pieces + 1))


AnyLink = LayerLink | GeneralLink | RowwiseLink | ReductionLink


def link_of(member: Member) -> AnyLink:
    """Returns a member as a link. Raises ValueError for a step that a cascade cannot have."""
    step = member.step
    if isinstance(step, LayerStep):
        return LayerLink(step, member.reads)
    if isinstance(step, GeneralStep):
        return GeneralLink(step, member.reads)
    if isinstance(step, RowwiseStep):
        return RowwiseLink(step, member.reads)
    if isinstance(step, PixelReductionStep):
        return ReductionLink(step, member.reads)
    raise ValueError(f"{type(step).__name__} is no part of a cascade")
