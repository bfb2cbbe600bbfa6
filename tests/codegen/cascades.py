"""Runs random cascades with forbidden pages around every buffer.

``python -m tests.codegen.cascades SEED COUNT``: names each cascade before it runs, so that the last
line is the one that was killed. What is right is what the layers give one after the other, by plans
of their own, to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.links import Dense, Member
from dnnsep.codegen.cascade.step import CascadeStep, Cut
from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.generalstep import General, GeneralStep
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.layer import Layer, layer_of, stages_of
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.rowwise.expression import Expression, layer_norm, operand, pixels
from dnnsep.codegen.rowwise.special import PixelReduction, Rowwise
from dnnsep.codegen.rowwise.step import PixelReductionStep, RowwiseStep
from dnnsep.codegen.step import Step
from dnnsep.dtypes import TENSOR_DTYPES
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from tests.codegen.guarded import Guarded, random_plan
from tests.codegen.running import run_parts

# So many ways to cut each cascade up are tried: most of the time goes into compiling its kernels.
_CUTS = 4
_ACTIVATIONS = ("none", "relu", "relu6")


def random_layers(rng: np.random.Generator) -> list[Problem]:
    """Returns two or three problems, each on what the one before it gives."""
    dtype = str(rng.choice(["f32", "bf16", "u8s8"]))
    batch, channels = int(rng.integers(1, 4)), int(rng.integers(2, 71))
    height, width = (int(rng.integers(1, 34)) for _ in range(2))
    found: list[Problem] = []
    for _ in range(int(rng.integers(2, 4))):
        found.append(_layer(rng, dtype, batch, channels, height, width))
        last = found[-1]
        channels, height, width = last.out_channels, last.out_height, last.out_width
    return found


def _layer(
    rng: np.random.Generator, dtype: str, batch: int, channels: int, height: int, width: int
) -> Problem:
    kind = str(rng.choice(["pointwise", "separable", "depthwise", "convolution"]))
    size = 1 if kind == "pointwise" else int(rng.choice([1, 2, 3, 5]))
    stride = 1 if kind == "pointwise" else int(rng.choice([1, 1, 2, 3]))
    padding = (0, 0, 0, 0)
    if size > 1:
        low = size - min(height, width)  # so that the kernel fits
        before, after = (max(int(rng.integers(0, size)), low) for _ in range(2))
        padding = (before, after, after, before)
    stages = 2 if kind == "separable" else 1
    return Problem(
        batch=batch,
        in_channels=channels,
        out_channels=channels if kind == "depthwise" else int(rng.integers(1, 91)),
        height=height,
        width=width,
        kernel=(size, size),
        stride=(stride, stride),
        padding=padding,
        activations=tuple(str(rng.choice(_ACTIVATIONS)) for _ in range(stages)),
        dtype=dtype,
        kind="convolution" if kind == "pointwise" else kind,
    )


def random_members(rng: np.random.Generator) -> list[Member]:
    """Returns layers by random plans, some with a residual, maybe a normalisation after one of
    them, and maybe squeeze and excitation at the end. Raises ValueError where there is no kernel
    for one."""
    problems = random_layers(rng)
    found: list[Member] = []
    step_of = _general_step if not rng.integers(3) else _step

    def add(problem: Problem, scale: int = -1) -> None:
        reads = {"x": len(found) - 1} if found else {}
        if scale >= 0:
            reads = {"x": scale, "scale": len(found) - 1}
        found.append(Member(step_of(problem, rng, scale >= 0), reads))

    for problem in problems:
        add(problem)
        if not problem.precision.quantized and not rng.integers(4):
            found.append(Member(_normalisation(problem), {"x0": len(found) - 1}))
    last = problems[-1]
    if not last.precision.quantized and not rng.integers(3):
        end = len(found) - 1
        found.append(Member(_mean(last), {"x0": end}))
        squeezed = int(rng.integers(1, 20))
        of_pixel = replace(_pointwise(last, squeezed), height=1, width=1)
        add(of_pixel)
        add(replace(of_pixel, in_channels=squeezed, out_channels=last.out_channels))
        if last.batch == 1 and rng.integers(2):
            found.append(Member(_gate(last), {"x0": end, "x1": len(found) - 1}))
        else:
            add(_pointwise(last, int(rng.integers(1, 50))), end)
    return found


def _step(problem: Problem, rng: np.random.Generator, scale: bool) -> LayerStep:
    isa = this_isa()
    layer = layer_of(problem, isa)
    can_add = layer.product is not None or not problem.precision.quantized
    extras = Extras(residual=can_add and not rng.integers(3), scale=scale)
    plan = random_plan(problem, isa, rng)
    plan = replace(plan, streaming=False, channel_parts=1)
    weights = CheckData.exact(problem, int(rng.integers(100))).weights
    return LayerStep(problem, plan, Packing(layer, plan.vectors).pack(weights), extras)


def _general_step(problem: Problem, rng: np.random.Generator, scale: bool) -> GeneralStep:
    """Returns a layer whose kernel is told its sizes. Raises ValueError where it has none."""
    layer = Layer(stages_of(problem), this_isa(), layer_of(problem, this_isa()).dot)
    general = General.of(layer, Extras(residual=not rng.integers(3), scale=scale))
    weights = CheckData.exact(problem, int(rng.integers(100))).weights
    packed = general.packing.pack(weights)
    return GeneralStep(general, Extent.of(problem), 2, packed, problem)


def _pointwise(problem: Problem, channels: int) -> Problem:
    """Returns a layer of so many channels on the output of another one."""
    return Problem(
        batch=problem.batch,
        in_channels=problem.out_channels,
        out_channels=channels,
        height=problem.out_height,
        width=problem.out_width,
        kernel=(1, 1),
        activations=("relu",),
        dtype=problem.dtype,
        kind="convolution",
    )


def _normalisation(problem: Problem) -> RowwiseStep:
    return _rowwise(layer_norm(pixels(0), 1e-6) * operand(1, "channels"), problem)


def _gate(problem: Problem) -> RowwiseStep:
    return _rowwise(pixels(0) * operand(1, "channels"), problem)


def _rowwise(expression: Expression, problem: Problem) -> RowwiseStep:
    channels = problem.out_channels
    special = Rowwise(expression, channels, problem.dtype, this_isa())
    count = problem.out_height * problem.out_width
    return RowwiseStep(special, problem.batch, count, (channels, channels), channels, 2)


def _mean(problem: Problem) -> PixelReductionStep:
    channels, count = problem.out_channels, problem.out_height * problem.out_width
    special = PixelReduction(pixels(0), "mean", channels, problem.dtype, this_isa())
    return PixelReductionStep(special, problem.batch, count, channels, channels, 2)


def random_values(like: Dense, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns a tensor of small whole numbers, or of bytes, as bytes."""
    dtype = TENSOR_DTYPES[like.dtype]
    if dtype.bytes == 1:
        return rng.integers(0, 256, like.bytes).astype(np.uint8)
    values = rng.integers(-4, 5, like.pixels * like.channels).astype(np.float32)
    return np.asarray(dtype.stored(dtype.rounded(values))).view(np.uint8)


def one_by_one(
    steps: CascadeStep, given: Mapping[tuple[int, str], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Returns what steps one after the other give, of the operands that no other one writes."""
    written: list[NDArray[np.uint8]] = []
    for number, (member, link) in enumerate(zip(steps.members, steps.links, strict=True)):
        operands = {}
        for name in link.operands:
            source = member.reads.get(name)
            operands[name] = given[(number, name)] if source is None else written[source]
        y = np.zeros(link.out.bytes + 64, np.uint8)
        y = y[-y.ctypes.data % 64 :][: link.out.bytes]
        _run(member.step, {name: memory.copy() for name, memory in operands.items()} | {"y": y})
        written.append(y)
    return written[-1]


def in_cascade(
    step: CascadeStep, given: Mapping[tuple[int, str], NDArray[np.uint8]], at_end: bool
) -> NDArray[np.uint8]:
    """Returns what a cascade gives, as bytes, having touched nothing beside its buffers."""
    held = {of: Guarded(len(memory), at_end) for of, memory in given.items()}
    for of, memory in given.items():
        held[of].bytes[:] = memory
    y = Guarded(step.links[-1].out.bytes, at_end)
    operands = {f"x{at}": held[of].bytes for at, of in enumerate(step.outer)}
    _run(step, operands | {"y": y.bytes})
    assert all(memory.untouched for memory in (*held.values(), y))
    return y.bytes


def _run(step: Step, operands: Mapping[str, NDArray[np.uint8]]) -> None:
    task = step.task()
    for name, memory in operands.items():
        setattr(task, name, memory.ctypes.data)
    each = -(-step.scratch_bytes // 64) * 64
    threads = min(2, step.parts)
    scratch = Guarded(threads * each, at_end=True)  # a page ends at a multiple of 64
    run_parts(step.kernel, task, step.parts, scratch.bytes.ctypes.data, each, threads)


def random_cut(members: Sequence[Member], rng: np.random.Generator) -> Cut:
    """Returns a way to cut up a cascade."""
    last = choose.cascade(members, Cut(1, 1, 0)).links[-1]
    return Cut(
        parts=int(rng.integers(1, min(len(last.starts) - 1, 4) + 1)),
        band=int(rng.integers(1, last.out.pixels + 1)),
        room=int(rng.choice([0, 4096, 1 << 16, 1 << 20])),
    )


def main(seed: int, count: int) -> None:
    done = 0
    rng = np.random.default_rng(seed)
    while done < count:
        try:
            members = random_members(rng)
            cuts = [random_cut(members, rng) for _ in range(min(_CUTS, count - done))]
        except ValueError:  # no such problem, or no kernel for it
            continue
        names = [getattr(member.step, "problem", type(member.step).__name__) for member in members]
        steps = CascadeStep(members, cuts[0])
        given = {of: random_values(steps.links[of[0]].operands[of[1]], rng) for of in steps.outer}
        expected = one_by_one(steps, given)
        for cut in cuts:
            at_end = bool(rng.integers(2))
            print(*names, cut, at_end, flush=True)
            found = in_cascade(choose.cascade(members, cut), given, at_end)
            assert np.array_equal(expected, found), "differs"
            done += 1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
