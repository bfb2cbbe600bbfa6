"""A network whose input's size is left open: number of images, height and width.

It is derived from a network for one size, kernel by kernel: the size of each value follows from the
sizes of what its kernel reads, and layers become general kernels, which are told all sizes. What
other sizes the model itself is the same graph for says sizes.py.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dnnsep.codegen.extent import Extent
from dnnsep.codegen.generalstep import General, GeneralStep
from dnnsep.codegen.layer import Layer, layer_of, stages_of
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.phases import Used
from dnnsep.codegen.rowwise.step import PixelReductionStep, RowwiseStep
from dnnsep.codegen.step import Step
from dnnsep.codegen.windows.copystep import CopyStep
from dnnsep.codegen.windows.poolstep import PoolStep
from dnnsep.graph import layout
from dnnsep.graph.build import Packer
from dnnsep.graph.grids import Grid, Grids
from dnnsep.graph.joined import Joined
from dnnsep.graph.network import Action, Buffer, Native, Value


class NoTemplateError(Exception):
    """Why a network cannot be one for other sizes of its input."""


@dataclass(frozen=True)
class Held:
    """A buffer that holds the pixels of a grid, each ``pitch`` elements from the next; an input
    that lies image by image, channel by channel, has no pitch."""

    grid: int
    pitch: int | None
    channels: int
    dtype: torch.dtype

    def bytes(self, grids: Sequence[Grid]) -> int:
        return grids[self.grid].pixels * (self.pitch or self.channels) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Open:
    """A kernel whose sizes are left open: ``at`` returns it as a step for grids and a number of
    threads. Its operands are buffers and bytes from their start."""

    at: Callable[[Sequence[Grid], int], Step]
    operands: Mapping[str, tuple[Buffer, int]]
    waits: bool


@dataclass(frozen=True)
class Output:
    """A result: the channels of a grid's pixels, from an element of each on, as images (N, C, H, W)
    or as a matrix."""

    buffer: Buffer
    grid: int
    channels: int
    first: int
    dims: int


@dataclass(frozen=True, eq=False)
class Template:
    """Kernels whose sizes are left open, the buffers they use, and the results.

    ``example`` is the size that it was derived at; ``held`` says what each buffer holds, but for
    constants. None is a result that is no tensor. Those kernels that are ``joined`` may run as
    cascades.
    """

    example: tuple[int, int, int]
    grids: Grids
    kernels: Sequence[Open]
    held: Mapping[Buffer, Held]
    outputs: Sequence[Output | None]
    joined: Sequence[Joined] = ()

    def steps(self, grids: Sequence[Grid], threads: int) -> list[Step]:
        """Returns the kernels for grids, as so many threads share them."""
        return [kernel.at(grids, threads) for kernel in self.kernels]

    def used(self, grids: Sequence[Grid], threads: int) -> list[Used]:
        """Returns the kernels for grids with their operands, some of them as cascades."""
        steps = self.steps(grids, threads)
        found: list[Used] = []
        done = 0

        def alone(end: int) -> None:
            for step, kernel in zip(steps[done:end], self.kernels[done:end], strict=True):
                found.append(Used(step, kernel.operands, kernel.waits))

        for joined in self.joined:
            made = joined.at(steps, threads)
            if made is not None:
                alone(joined.first)
                done = joined.end
                own = self.kernels[joined.first : done]
                operands = made.operands_of([kernel.operands for kernel in own])
                found.append(Used(made, operands, own[-1].waits))
        alone(len(steps))
        return found

    def example_steps(self, threads: int) -> list[Step]:
        """Returns the kernels for the example's size."""
        return self.steps(self.grids.of(*self.example), threads)

    def compile(self) -> None:
        """Makes all kernels ready."""
        for step in self.example_steps(1):
            _ = step.kernel

    @cached_property
    def input(self) -> Held:
        """What the input is like."""
        return next(held for buffer, held in self.held.items() if buffer.kind == "input")


def template_of(
    actions: Sequence[Action],
    outputs: Sequence[Any],
    inputs: Sequence[Tensor],
    packers: Mapping[Native, Packer],
) -> Template:
    """Returns a network's actions and outputs, made for inputs like these, with their sizes left
    open. ``packers`` pack the weights of its layers. Raises NoTemplateError, which says why, where
    that cannot be."""
    if len(inputs) != 1 or inputs[0].dim() != 4:
        raise NoTemplateError("its input is not a single tensor of images")
    return _Deriver(inputs[0], packers).template(actions, outputs)


class _Deriver:
    def __init__(self, x: Tensor, packers: Mapping[Native, Packer]) -> None:
        self._packers = packers
        self._size = (x.shape[0], x.shape[2], x.shape[3])
        self._grids = Grids()
        self._held: dict[Buffer, Held] = {}
        self._x = x

    def template(self, actions: Sequence[Action], outputs: Sequence[Any]) -> Template:
        kernels = [self._open(action) for action in actions]
        results = [self._output(value) for value in outputs]
        return Template(self._size, self._grids, kernels, self._held, results)

    def _open(self, action: Any) -> Open:
        if not isinstance(action, Native):
            raise NoTemplateError(f"{action.name} is an operator of torch")
        makers: dict[type, Callable[[Native, Any], Callable[[Sequence[Grid], int], Step]]] = {
            LayerStep: self._layer,
            PixelReductionStep: self._reduction,
            RowwiseStep: self._rowwise,
            PoolStep: self._pool,
            CopyStep: self._copy,
        }
        make = makers.get(type(action.step))
        if make is None:
            raise NoTemplateError(f"{action.name} is a {type(action.step).__name__}")
        at = make(action, action.step)
        operands = {
            name: (value.buffer, layout.offset_of(value.like) * value.like.element_size())
            for name, value in action.operands.items()
        }
        return Open(at, operands, action.waits)

    # What each kind of kernel is for other sizes

    def _layer(self, native: Native, step: LayerStep) -> Callable[[Sequence[Grid], int], Step]:
        problem, extras, isa = step.problem, step.extras, step.plan.isa
        if min(problem.padding) < 0:
            raise NoTemplateError(f"{native.name} is cropped")
        layer = Layer(stages_of(problem), isa, layer_of(problem, isa).dot)
        try:
            general = General.of(layer, extras)
        except ValueError as reason:
            raise NoTemplateError(f"{native.name}: {reason}") from None
        rows = problem.kind == "linear"
        grid = self._read(native.operands["x"], extras.x_pitch or problem.in_channels)
        out = grid if rows else self._grids.under_window(grid, layer.window)
        self._written(native.operands["y"], out, extras.y_pitch or problem.out_channels)
        if extras.residual:
            pitch = extras.residual_pitch or problem.out_channels
            self._same(out, self._read(native.operands["residual"], pitch))
        if extras.scale:
            scale = self._read(native.operands["scale"], problem.in_channels)
            self._same(Grids.IMAGES, scale)
        packed = self._packers[native](general.packing)

        def at(grids: Sequence[Grid], threads: int) -> Step:
            of = grids[grid]
            extent = Extent(1, 1, of.pixels) if rows else Extent(of.images, of.height, of.width)
            return GeneralStep(general, extent, threads, packed, problem)

        self._check(at, step, lambda one: (one.extent,), (Extent.of(problem),))
        return at

    def _reduction(
        self, native: Native, step: PixelReductionStep
    ) -> Callable[[Sequence[Grid], int], Step]:
        grid = self._read(native.operands["x0"], step.pitch)
        self._written(native.operands["y"], Grids.IMAGES, step.y_pitch)

        def at(grids: Sequence[Grid], threads: int) -> Step:
            of = grids[grid]
            return replace(step, images=of.images, pixels=of.height * of.width, threads=threads)

        self._check(at, step, lambda one: (one.images, one.pixels), (step.images, step.pixels))
        return at

    def _rowwise(self, native: Native, step: RowwiseStep) -> Callable[[Sequence[Grid], int], Step]:
        found: set[int] = set()
        by_image = False
        for operand, pitch in zip(step.special.inputs, step.pitches, strict=True):
            value = native.operands[f"x{operand.number}"]
            if operand.kind == "pixels":
                found.add(self._read(value, pitch))
            elif operand.kind == "image":
                by_image = True
                self._same(Grids.IMAGES, self._read(value, step.special.channels))
            elif operand.kind != "channels" or value.buffer.kind != "constant":
                raise NoTemplateError(f"{native.name} takes values for each {operand.kind}")
        if len(found) != 1:
            raise NoTemplateError(f"{native.name} reads pixels of several sizes")
        (grid,) = found
        self._written(native.operands["y"], grid, step.y_pitch)

        def at(grids: Sequence[Grid], threads: int) -> Step:
            of = grids[grid]
            images = of.images if by_image else 1
            return replace(step, images=images, pixels=of.pixels // images, threads=threads)

        self._check(at, step, lambda one: (one.images * one.pixels,), (step.images * step.pixels,))
        return at

    def _pool(self, native: Native, step: PoolStep) -> Callable[[Sequence[Grid], int], Step]:
        grid = self._read(native.operands["x"], step.x_pitch)
        out = self._grids.pooled(grid, step.pooling)
        self._written(native.operands["y"], out, step.y_pitch)

        def at(grids: Sequence[Grid], threads: int) -> Step:
            of = grids[grid]
            return replace(
                step, images=of.images, height=of.height, width=of.width, threads=threads
            )

        self._check(
            at,
            step,
            lambda one: (one.images, one.height, one.width),
            (step.images, step.height, step.width),
        )
        return at

    def _copy(self, native: Native, step: CopyStep) -> Callable[[Sequence[Grid], int], Step]:
        x, y = native.operands["x"], native.operands["y"]
        if x.like.dim() != 4:
            raise NoTemplateError(f"{native.name} copies what is no image")
        channels = x.like.shape[1]
        source = self._source_of_copy(x)
        rows = layout.rows_of(y.like, 1)
        if rows is None:
            raise NoTemplateError(f"{native.name} copies to what are no rows of channels")
        self._written(y, source.grid, rows.pitch)
        target = self._held[y.buffer]

        def strides(held: Held, of: Grid) -> tuple[int, ...]:
            each = of.height * of.width
            if held.pitch is None:
                return held.channels * each, each, of.width, 1
            return each * held.pitch, 1, of.width * held.pitch, held.pitch

        def at(grids: Sequence[Grid], threads: int) -> Step:
            of = grids[source.grid]
            return CopyStep(
                (of.images, channels, of.height, of.width),
                strides(source, of),
                strides(target, of),
                step.element_bytes,
                step.isa,
                threads,
            )

        self._check(at, step, lambda one: one.sizes, step.sizes)
        return at

    def _source_of_copy(self, x: Value) -> Held:
        """Returns what a copy of images reads: an input that lies channel by channel, or rows."""
        whole = x.buffer.kind == "input" and x.like.is_contiguous() and not x.like.storage_offset()
        if whole and x.buffer not in self._held:
            self._held[x.buffer] = Held(Grids.INPUT, None, x.like.shape[1], x.like.dtype)
        if whole and self._held[x.buffer].pitch is None:
            return self._held[x.buffer]
        rows = layout.rows_of(x.like, 1)
        if rows is None:
            raise NoTemplateError("a copy reads what are no rows of channels")
        self._read(x, rows.pitch)
        return self._held[x.buffer]

    # Values

    def _read(self, value: Value, pitch: int) -> int:
        """Returns the grid of the pixels that a kernel reads, so many elements apart."""
        if value.buffer.kind == "input" and value.buffer not in self._held:
            self._written(value, Grids.INPUT, pitch)
        held = self._held.get(value.buffer)
        if held is None:
            raise NoTemplateError("a kernel reads pixels of a constant")
        self._fits(value, held, pitch)
        return held.grid

    def _written(self, value: Value, grid: int, pitch: int) -> None:
        """Notes that a value's buffer holds the pixels of a grid, so many elements apart."""
        channels = value.like.shape[1 if value.like.dim() == 4 else -1]
        held = self._held.setdefault(value.buffer, Held(grid, pitch, channels, value.like.dtype))
        self._same(grid, held.grid)
        self._fits(value, held, pitch)

    def _fits(self, value: Value, held: Held, pitch: int) -> None:
        """Checks that a value is pixels of what its buffer holds, at the example's size."""
        like, of = value.like, self._example[held.grid]
        dim = 1 if like.dim() == 4 else -1
        rows = layout.rows_of(like, dim)
        if rows is None or rows.pixels != of.pixels or like.dtype != held.dtype:
            raise NoTemplateError("a value is not the pixels that another one of its memory is")
        apart = rows.pixels == 1 or rows.pitch == pitch
        if held.pitch != pitch or not apart or rows.offset + rows.channels > pitch:
            raise NoTemplateError("values share memory in another way for each size")
        if held.grid != Grids.IMAGES and min(of.height, of.width) == 1:
            raise NoTemplateError("images of a single row or column: the example is too small")

    @property
    def _example(self) -> Sequence[Grid]:
        return self._grids.of(*self._size)

    def _same(self, one: int, other: int) -> None:
        if one != other:
            raise NoTemplateError("the sizes of two values do not follow in the same way")

    def _check(
        self,
        at: Callable[[Sequence[Grid], int], Step],
        step: Any,
        sizes: Callable[[Any], Any],
        expected: Any,
    ) -> None:
        """Checks that a kernel at the example's size is told the sizes that it has there."""
        if sizes(at(self._example, 1)) != expected:
            raise NoTemplateError(
                f"{type(step).__name__}: its sizes do not follow from the input's"
            )

    def _output(self, value: Any) -> Output | None:
        if value is None:
            return None
        if not isinstance(value, Value) or value.buffer.kind != "fresh":
            raise NoTemplateError("a result is not what a kernel writes")
        held, like = self._held[value.buffer], value.like
        of = self._example[held.grid]
        if like.dim() not in (2, 4):
            raise NoTemplateError("a result is neither images nor a matrix")
        channels = like.shape[1]
        size: tuple[int, ...] = (of.pixels, channels)
        if like.dim() == 4:
            size = (of.images, channels, of.height, of.width)
        if tuple(like.shape) != size or channels + like.storage_offset() > (held.pitch or 0):
            raise NoTemplateError("a result is not the pixels of images")
        return Output(value.buffer, held.grid, channels, layout.offset_of(like), like.dim())
