"""Runs random cascades with forbidden pages around every buffer.

``python -m tests.codegen.cascades SEED COUNT``: names each cascade before it runs, so that the last
line is the one that was killed. What is right is what the layers give one after the other, by plans
of their own, to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen.cascade.step import CascadeStep, Cut
from dnnsep.codegen.extras import PLAIN, Extras
from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.pack import Packing
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from tests.codegen.guarded import Guarded, in_memory, random_plan
from tests.codegen.running import run_parts

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


def random_steps(problems: Sequence[Problem], rng: np.random.Generator) -> list[LayerStep]:
    """Returns layers by random plans, the last one maybe with a residual."""
    isa = this_isa()
    steps = []
    for number, problem in enumerate(problems):
        last = number == len(problems) - 1 and layer_of(problem, isa).product is not None
        extras = Extras(residual=True) if last and rng.integers(2) else PLAIN
        plan = random_plan(problem, isa, rng)
        weights = CheckData.exact(problem, number).weights
        if extras.residual and problem.precision.quantized:
            extras = PLAIN
        packed = Packing(layer_of(problem, isa), plan.vectors).pack(weights)
        steps.append(LayerStep(problem, plan, packed, extras))
    return steps


def one_by_one(
    steps: Sequence[LayerStep], x: NDArray[np.uint8], residual: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Returns what layers one after the other give, as bytes."""
    for step in steps:
        y = np.zeros(step.problem.out_pixels * _pixel(step.problem) + 64, np.uint8)
        start = -y.ctypes.data % 64
        given = x.copy()
        _run(step, given, y[start:], residual)
        x = y[start : start + step.problem.out_pixels * _pixel(step.problem)]
    return x


def in_cascade(
    step: CascadeStep, x: NDArray[np.uint8], residual: NDArray[np.uint8], at_end: bool
) -> NDArray[np.uint8]:
    """Returns what a cascade gives, as bytes, having touched nothing beside its buffers."""
    problem = step.layers[-1].problem
    held = [Guarded(len(x), at_end), Guarded(len(residual), at_end)]
    held[0].bytes[:], held[1].bytes[:] = x, residual
    y = Guarded(problem.out_pixels * _pixel(problem), at_end)
    _run(step, held[0].bytes, y.bytes, held[1].bytes)
    assert all(memory.untouched for memory in (*held, y))
    return y.bytes


def _run(
    step: LayerStep | CascadeStep,
    x: NDArray[np.uint8],
    y: NDArray[np.uint8],
    residual: NDArray[np.uint8],
) -> None:
    task = step.task()
    task.x, task.y, task.residual = (memory.ctypes.data for memory in (x, y, residual))
    each = -(-step.scratch_bytes // 64) * 64
    threads = min(2, step.parts)
    scratch = Guarded(threads * each, at_end=True)  # a page ends at a multiple of 64
    run_parts(step.kernel, task, step.parts, scratch.bytes.ctypes.data, each, threads)


def _pixel(problem: Problem) -> int:
    return problem.out_channels * problem.precision.destination.bytes


def random_cut(step: LayerStep, rng: np.random.Generator) -> Cut:
    """Returns a way to cut up a cascade that ends with a layer."""
    pieces = step.plan.pieces
    return Cut(
        parts=int(rng.integers(1, min(pieces, 4) + 1)),
        band=int(rng.integers(1, pieces + 1)),
        room=int(rng.choice([0, 4096, 1 << 16, 1 << 20])),
    )


def main(seed: int, count: int) -> None:
    done = 0
    rng = np.random.default_rng(seed)
    while done < count:
        try:
            problems = random_layers(rng)
            steps = random_steps(problems, rng)
        except ValueError:  # no such problem, or no kernel for it
            continue
        whole = [replace(s, plan=replace(s.plan, channel_parts=1, streaming=False)) for s in steps]
        cut, at_end = random_cut(steps[-1], rng), bool(rng.integers(2))
        print(*problems, cut, at_end, flush=True)
        first, last = problems[0], problems[-1]
        x = in_memory(CheckData.exact(first, 0).x, first.precision.source, first.in_channels)
        size = last.out_pixels * _pixel(last)
        residual = np.zeros(size, np.uint8)
        if steps[-1].extras.residual:
            values = rng.integers(-4, 5, last.output_shape).astype(np.float32)
            residual = in_memory(values, last.precision.destination, last.out_channels)
        expected = one_by_one(steps, x, residual)
        found = in_cascade(CascadeStep(whole, cut), x, residual, at_end)
        assert np.array_equal(expected, found), "differs"
        done += 1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
