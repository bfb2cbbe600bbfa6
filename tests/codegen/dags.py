"""Random programs of small steps, with what each of them should give.

Every step is one of a few layers on a few shapes, so that however the steps are linked only a few
kernels have to be compiled.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dnnsep.codegen.sources import Sources
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.codegen import team
from dnnsep.codegen.kernel import compiled
from dnnsep.codegen.program import GIVEN, INPUT, Program, Step, chosen_step
from dnnsep.codegen.task import Task
from dnnsep.dtypes import DTYPES, Array, Dtype
from dnnsep.problem import Problem
from dnnsep.weights import Weights, random_data
from tests.codegen.answers import answer

Shape = tuple[int, int, int, int]

_IMAGE: Shape = (2, 24, 4, 4)
SHAPES: dict[int, Shape] = {INPUT: _IMAGE, GIVEN: _IMAGE}

LAYERS = (
    "mb2ic24oc24ih4kh3ph1_act:relu,none",
    "g24mb2ic24oc24ih4kh3ph1",
    "g1mb2ic24oc24ih4kh1_act:relu",
    "g1mb2ic24oc56ih4kh1",
    "g1mb2ic56oc24ih4kh1",
    "g1mb2ic56oc56ih4kh3ph1_nobias",
    "mean_mb2ic24ih4",
    "mean_mb2ic56ih4",
    "linear_mb2ic24oc24_act:sigmoid",
    "linear_mb2ic56oc56_act:sigmoid",
)


@dataclass(frozen=True, eq=False)
class Node:
    """A step before its plan is chosen."""

    problem: Problem
    weights: Weights
    sources: Sources[int]

    def step(self, threads: int) -> Step:
        return chosen_step(
            self.problem, lambda packing: packing.pack(self.weights), threads, self.sources
        )

    def answer(self, values: dict[int, Array]) -> tuple[Exact, Exact]:
        """Returns the naive answer on the sources' values, and how far a right one may be off."""
        found = {name: values[source] for name, source in self.sources.items()}
        return answer(
            self.problem, self.weights, found["x"], found.get("residual"), found.get("scale")
        )

    def alone(self, values: dict[int, Array], threads: int) -> Array:
        """Returns what the step's kernel gives on the sources' values, with no program around it
        and each value in memory of its own."""
        step, dtype = self.step(threads), DTYPES[self.problem.dtype]
        kernel = compiled(step.special)
        given = {name: laid_out(values[source], dtype) for name, source in self.sources.items()}
        y = np.empty(_last(self.problem.output_shape), next(iter(given.values())).dtype)
        scratch = np.empty(step.plan.parts * step.room.part, np.uint8)
        task = Task(
            **{name: array.ctypes.data for name, array in given.items()},
            y=y.ctypes.data,
            packed=step.packed.ctypes.data,
            scratch=scratch.ctypes.data,
            thread_number=team.address_of("omp_get_thread_num"),
            thread_count=team.address_of("omp_get_num_threads"),
            tile=step.plan.tile,
            tile_bytes=step.room.tile,
            part_bytes=step.room.part,
        )
        team.parallel()(kernel.address, ctypes.addressof(task), step.plan.parts, 0)
        return read(y, dtype)


def laid_out(values: Array, dtype: Dtype) -> NDArray[Any]:
    """Returns values (N, C, H, W) as they are in memory, channels-last."""
    return dtype.stored(np.ascontiguousarray(values.transpose(0, 2, 3, 1)))


def read(memory: NDArray[Any], dtype: Dtype) -> Array:
    """Returns the values (N, C, H, W) of what is in memory, channels-last."""
    return dtype.loaded(memory).transpose(0, 3, 1, 2)


def _last(shape: Shape) -> Shape:
    return shape[0], shape[2], shape[3], shape[1]


def run(program: Program, x: Array, given: Array) -> Array:
    """Returns a program's result on values that its first steps and others read."""
    last = program.steps[-1].problem
    dtype = DTYPES[last.dtype]
    inputs = [laid_out(values, dtype) for values in (x, given)]
    y = np.empty(_last(last.output_shape), inputs[0].dtype)
    program.run(inputs[0].ctypes.data, inputs[1].ctypes.data, y.ctypes.data)
    return read(y, dtype)


def random_dag(rng: np.random.Generator, dtype: str, steps: int) -> list[Node]:
    """Returns up to so many steps, each of which the last one needs in some way."""
    problems = [Problem.parse(f"{text}_{dtype}") for text in LAYERS]
    weights = [random_data(problem, seed)[0] for seed, problem in enumerate(problems)]
    shapes, unread = dict(SHAPES), set(SHAPES)
    nodes: list[Node] = []
    while len(nodes) < steps:
        index = int(rng.integers(len(problems)))
        sources = _any_sources(problems[index], shapes, unread, rng)
        if sources is not None:
            unread -= {source for _, source in sources.items()}
            unread.add(len(nodes))
            shapes[len(nodes)] = problems[index].output_shape
            nodes.append(Node(problems[index], weights[index], sources))
    return _needed(nodes)


def _any_sources(
    problem: Problem, shapes: dict[int, Shape], unread: set[int], rng: np.random.Generator
) -> Sources[int] | None:
    """Returns random links of a step to what there is; None where no input fits it."""

    def any_of(shape: Shape) -> int | None:
        fitting = [source for source, other in shapes.items() if other == shape]
        # What nobody has read yet, so that the last step depends on most others; now and then any,
        # so that results are needed for long.
        fresh = [source for source in fitting if source in unread]
        if fresh and rng.random() < 0.8:
            return int(rng.choice(fresh))
        return int(rng.choice(fitting)) if fitting else None

    x = any_of(problem.input_shape)
    if x is None:
        return None
    residual = scale = None
    if problem.kind != "mean" and rng.random() < 0.7:
        residual = any_of(problem.output_shape)
    if problem.kind == "convolution" and problem.kernel == (1, 1) and rng.random() < 0.7:
        scale = any_of((*problem.input_shape[:2], 1, 1))
    return Sources(x, residual, scale)


def _needed(nodes: Sequence[Node]) -> list[Node]:
    """Returns the nodes that the last one depends on, with their numbers among each other."""
    needed = {len(nodes) - 1}
    for number in reversed(range(len(nodes))):
        if number in needed:
            needed |= {source for _, source in nodes[number].sources.items()}
    kept = sorted(number for number in needed if number >= 0)
    renumbered = {INPUT: INPUT, GIVEN: GIVEN, **{old: new for new, old in enumerate(kept)}}
    return [
        Node(nodes[n].problem, nodes[n].weights, nodes[n].sources.map(renumbered.__getitem__))
        for n in kept
    ]
