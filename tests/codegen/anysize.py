"""Runs general kernels of random layers on inputs of changing sizes, with forbidden pages around
every buffer.

``python -m tests.codegen.anysize SEED COUNT``: names each problem before it runs.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from dnnsep.codegen.dots import dots_for
from dnnsep.codegen.extent import Extent
from dnnsep.codegen.general import emit_general
from dnnsep.codegen.generalstep import General, GeneralStep
from dnnsep.codegen.lang.isa import Isa, this_isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.layer import Layer, stages_of
from dnnsep.codegen.task import KERNEL
from dnnsep.problem import Problem
from tests.codegen.guarded import Inputs, answer_of, random_extras, random_problem

# Problems that a kernel runs before the next one is made.
SIZES = 10


def random_general(rng: np.random.Generator, isa: Isa) -> tuple[Problem, General]:
    """Returns a problem and the general kernel of its layer, multiplied in any way on vectors."""
    while True:
        problem = random_problem(rng)
        if problem.kind == "mean" or (
            problem.kind == "depthwise" and problem.channel_multiplier > 1
        ):
            continue
        ways = [dot for dot in dots_for(problem.dtype, isa) if not dot.in_tiles]
        layer = Layer(stages_of(problem), isa, ways[rng.integers(len(ways))])
        extras = random_extras(layer, rng, scales=problem.kind == "convolution")
        return problem, General.of(layer, extras)


def resized(problem: Problem, rng: np.random.Generator) -> Problem:
    """Returns the problem for an input of another size that its kernel fits. Of one that is cropped
    the size stays: how much says something else of each size."""
    if min(problem.padding) < 0:
        return replace(problem, batch=int(rng.integers(1, 4)))
    while True:
        batch, height, width = (int(rng.integers(1, most)) for most in (4, 24, 40))
        try:
            if problem.kind == "linear":
                return replace(problem, batch=width)
            return replace(problem, batch=batch, height=height, width=width)
        except ValueError:
            continue


def finding(
    problem: Problem, general: General, function: Function, rng: np.random.Generator
) -> str:
    """Runs a kernel on an input of a problem; returns what is wrong, nothing where all is right."""
    packing = general.packing
    threads, nothing = int(rng.integers(1, 5)), np.zeros(1, np.uint8)
    step = GeneralStep(general, Extent.of(problem), threads, nothing, problem)
    assert step.problem == problem
    inputs = Inputs.of(problem, general.extras, int(rng.integers(1000)))
    task, work = step.task(), (step.parts, step.scratch_bytes)
    if rng.random() < 0.5:  # tiles of any size
        task.tile = int(rng.integers(1, task.tile + 1))
    found = answer_of(problem, packing, function, task, work, inputs, bool(rng.integers(2)))
    right, why = inputs.check.verdict(found)
    return "" if right else why


def main(seed: int, count: int) -> None:
    rng, isa = np.random.default_rng(seed), this_isa()
    for number in range(count):
        if number % SIZES == 0:
            problem, general = random_general(rng, isa)
            module = emit_general(general.layer, general.vectors, general.extras)
            function = Function(machine_code(module, isa.target), "run", KERNEL)
        print(problem, general.layer.dot, general.extras, flush=True)
        wrong = finding(problem, general, function, rng)
        if wrong:
            raise SystemExit(f"wrong: {wrong}")
        problem = resized(problem, rng)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
