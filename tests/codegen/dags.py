"""Random programs of small steps, with what each of them should give.

Every step is one of a few layers on a few shapes, so that however the steps are linked only a few
kernels have to be compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import Exact
from dnnsep.codegen.arena import Lifetime, offsets
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.layerstep import LayerStep, chosen_step
from dnnsep.codegen.program import GIVEN, INPUT, OUTPUT, Place, Placed, Program
from dnnsep.dtypes import DTYPES, Array, Dtype
from dnnsep.problem import Problem
from dnnsep.weights import Weights, random_data
from tests.codegen.answers import answer
from tests.codegen.running import run_parts

Shape = tuple[int, int, int, int]

# The number of the buffer that holds what is between the steps.
ARENA = 0

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


@dataclass(frozen=True)
class Links:
    """What a step reads: results by the numbers of their steps, or INPUT and GIVEN."""

    x: int
    residual: int | None = None
    scale: int | None = None

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for name in ("x", "residual", "scale"):
            source = getattr(self, name)
            if source is not None:
                yield name, source

    def renumbered(self, numbers: Mapping[int, int]) -> Links:
        return Links(**{name: numbers[source] for name, source in self})


@dataclass(frozen=True, eq=False)
class Node:
    """A step before its plan is chosen and its operands are placed."""

    problem: Problem
    weights: Weights
    links: Links

    @property
    def size(self) -> int:
        """The bytes of its result."""
        return prod(self.problem.output_shape) * DTYPES[self.problem.dtype].bytes

    def step(self, threads: int) -> LayerStep:
        extras = Extras(
            residual=self.links.residual is not None, scale=self.links.scale is not None
        )
        return chosen_step(self.problem, lambda by: by.pack(self.weights), threads, extras)

    def answer(self, values: Mapping[int, Array]) -> tuple[Exact, Exact]:
        """Returns the naive answer on the sources' values, and how far a right one may be off."""
        found = {name: values[source] for name, source in self.links}
        return answer(
            self.problem, self.weights, found["x"], found.get("residual"), found.get("scale")
        )

    def alone(self, values: Mapping[int, Array], threads: int) -> Array:
        """Returns what the step's kernel gives on the sources' values, with no program around it
        and each value in memory of its own."""
        step, dtype = self.step(threads), DTYPES[self.problem.dtype]
        given = {name: laid_out(values[source], dtype) for name, source in self.links}
        y = np.empty(_last(self.problem.output_shape), next(iter(given.values())).dtype)
        size = -(-step.scratch_bytes // 64) * 64
        scratch = np.empty(2 * size + 64, np.uint8)
        start = scratch.ctypes.data + -scratch.ctypes.data % 64
        task = step.task()
        for name, array in {**given, "y": y}.items():
            setattr(task, name, array.ctypes.data)
        run_parts(step.kernel, task, step.parts, start, size)
        return read(y, dtype)


@dataclass(frozen=True, eq=False)
class Placements:
    """A program whose last step writes OUTPUT and all others an arena of so many bytes."""

    program: Program
    dtype: Dtype
    shape: Shape
    arena_bytes: int

    def run(self, x: Array, given: Array) -> Array:
        """Returns the last step's result on values that any of the steps read."""
        inputs = [laid_out(values, self.dtype) for values in (x, given)]
        y = np.empty(_last(self.shape), inputs[0].dtype)
        # What is in the arena before a step has written it must not matter: bytes of NaN.
        arena = np.full(self.arena_bytes + 64, 0xFF, np.uint8)
        addresses = dict(zip((INPUT, GIVEN), (i.ctypes.data for i in inputs), strict=True))
        start = arena.ctypes.data + -arena.ctypes.data % 64
        self.program.run({**addresses, OUTPUT: y.ctypes.data, ARENA: start})
        return read(y, self.dtype)


def placed(nodes: Sequence[Node], threads: int, reuse: bool = True) -> Placements:
    """Returns nodes as a program; the last one's result is the program's. Memory of a result that
    nothing reads any more is taken again, unless ``reuse`` says no."""
    last = len(nodes) - 1
    reads = [(source, number) for number, node in enumerate(nodes) for _, source in node.links]
    lives = [
        Lifetime(
            node.size,
            number,
            max(reader for source, reader in reads if source == number) if reuse else last,
        )
        for number, node in enumerate(nodes[:-1])
    ]
    starts, arena_bytes = offsets(lives)
    places = {INPUT: Place(INPUT), GIVEN: Place(GIVEN), last: Place(OUTPUT)}
    places |= {number: Place(ARENA, start) for number, start in enumerate(starts)}
    steps = [
        Placed(
            node.step(threads),
            {name: places[source] for name, source in node.links} | {"y": places[number]},
        )
        for number, node in enumerate(nodes)
    ]
    problem = nodes[-1].problem
    return Placements(Program(steps), DTYPES[problem.dtype], problem.output_shape, arena_bytes)


def laid_out(values: Array, dtype: Dtype) -> NDArray[Any]:
    """Returns values (N, C, H, W) as they are in memory, channels-last."""
    return dtype.stored(np.ascontiguousarray(values.transpose(0, 2, 3, 1)))


def read(memory: NDArray[Any], dtype: Dtype) -> Array:
    """Returns the values (N, C, H, W) of what is in memory, channels-last."""
    return dtype.loaded(memory).transpose(0, 3, 1, 2)


def _last(shape: Shape) -> Shape:
    return shape[0], shape[2], shape[3], shape[1]


def random_dag(rng: np.random.Generator, dtype: str, steps: int) -> list[Node]:
    """Returns up to so many steps, each of which the last one needs in some way."""
    problems = [Problem.parse(f"{text}_{dtype}") for text in LAYERS]
    weights = [random_data(problem, seed)[0] for seed, problem in enumerate(problems)]
    shapes, unread = dict(SHAPES), set(SHAPES)
    nodes: list[Node] = []
    while len(nodes) < steps:
        index = int(rng.integers(len(problems)))
        links = _any_links(problems[index], shapes, unread, rng)
        if links is not None:
            unread -= {source for _, source in links}
            unread.add(len(nodes))
            shapes[len(nodes)] = problems[index].output_shape
            nodes.append(Node(problems[index], weights[index], links))
    return _needed(nodes)


def _any_links(
    problem: Problem, shapes: dict[int, Shape], unread: set[int], rng: np.random.Generator
) -> Links | None:
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
    return Links(x, residual, scale)


def _needed(nodes: Sequence[Node]) -> list[Node]:
    """Returns the nodes that the last one depends on, with their numbers among each other."""
    needed = {len(nodes) - 1}
    for number in reversed(range(len(nodes))):
        if number in needed:
            needed |= {source for _, source in nodes[number].links}
    kept = sorted(number for number in needed if number >= 0)
    numbers = {INPUT: INPUT, GIVEN: GIVEN, **{old: new for new, old in enumerate(kept)}}
    return [
        Node(nodes[n].problem, nodes[n].weights, nodes[n].links.renumbered(numbers)) for n in kept
    ]
