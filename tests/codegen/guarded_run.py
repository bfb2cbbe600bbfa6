"""Runs the fused kernel of random problems with forbidden pages around every buffer.

``python -m tests.codegen.guarded_run SEED COUNT``: prints each problem before it runs, so that the
last line names the one that was killed.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np

from dnnsep.codegen import openmp
from dnnsep.codegen.choose import choose
from dnnsep.codegen.isa import this_isa
from dnnsep.codegen.kernel import compiled
from dnnsep.codegen.pack import packed
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from tests.codegen.guard import Guarded
from tests.random_problems import random_problem

_TASK = ctypes.c_void_p * 6


def run_guarded(problem: Problem, threads: int, at_end: bool) -> np.ndarray:
    """The fused kernel's answer, (N, OC, OH, OW) in f32, with each buffer at the end (or at the
    start) of the memory that may be touched."""
    data = CheckData.exact(problem)
    plan = choose(problem, this_isa(), threads)
    kernel = compiled(problem, plan)
    element = np.float32 if problem.dtype == "f32" else np.uint16
    x = np.ascontiguousarray(data.x.transpose(0, 2, 3, 1))
    if problem.dtype == "bf16":
        x = (x.view(np.uint32) >> 16).astype(np.uint16)
    n, c, h, w = problem.output_shape
    weights = packed(problem, plan, data.weights)
    sizes = (x.nbytes, n * c * h * w * np.dtype(element).itemsize, weights.nbytes)
    buffers = [Guarded(size, at_end) for size in (*sizes, kernel.scratch_bytes)]
    buffers[0].bytes[:] = x.reshape(-1).view(np.uint8)
    buffers[2].bytes[:] = weights
    run = openmp.parallel()
    names = ("omp_get_thread_num", "omp_get_num_threads")
    pointers = [buffer.bytes.ctypes.data for buffer in buffers]
    task = _TASK(*pointers, *(openmp.address_of(name) for name in names))
    run(kernel.address, task, plan.parts, 0)
    y = buffers[1].bytes.view(element).reshape(n, h, w, c)
    if problem.dtype == "bf16":
        y = (y.astype(np.uint32) << 16).view(np.float32)
    return y.transpose(0, 3, 1, 2)


def main(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        problem = random_problem(rng)
        threads, at_end = int(rng.integers(1, 5)), bool(rng.integers(2))
        print(problem, threads, at_end, flush=True)
        right, finding = CheckData.exact(problem).verdict(run_guarded(problem, threads, at_end))
        if not right:
            raise SystemExit(f"wrong: {finding}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
