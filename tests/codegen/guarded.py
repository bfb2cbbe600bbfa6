"""Runs fused kernels of random problems with forbidden pages around every buffer.

``python -m tests.codegen.guarded SEED COUNT``: names each problem before it runs, so that the last
line is the one that was killed.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.backends.reference import error_bound, separable
from dnnsep.codegen import team
from dnnsep.codegen.choose import Caches, all_plans
from dnnsep.codegen.lang.isa import Isa, this_isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.pack import packed
from dnnsep.codegen.plan import Plan, by_rows
from dnnsep.codegen.separable import (
    PLAIN,
    TASK_FIELDS,
    Extras,
    can_be_scaled,
    emit_separable,
    part_bytes,
)
from dnnsep.problem import ACTIVATIONS, Problem
from dnnsep.single import Dense, Depthwise, Mean
from dnnsep.sweep.check import CheckData
from dnnsep.weights import integer_data

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE
_PROT_NONE = 0
_UNTOUCHED = 0xA5
_ADDED = 3


class Guarded:
    """``size`` bytes that end where a forbidden page begins, or begin where one ends.

    Bytes between the other end and its forbidden page are watched: ``untouched`` says whether they
    are as they were.
    """

    def __init__(self, size: int, at_end: bool) -> None:
        pages = -(-max(size, 1) // _PAGE)
        self._map = mmap.mmap(-1, (pages + 2) * _PAGE)
        whole = np.frombuffer(self._map, np.uint8)
        start = whole.ctypes.data
        for page in (start, start + (pages + 1) * _PAGE):
            if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        room = whole[_PAGE : (pages + 1) * _PAGE]
        room[:] = _UNTOUCHED
        first = len(room) - size if at_end else 0
        self.bytes = room[first : first + size]
        self._rest = room[:first] if at_end else room[size:]

    @property
    def untouched(self) -> bool:
        return bool((self._rest == _UNTOUCHED).all())


def run_guarded(
    problem: Problem, plan: Plan, data: CheckData, at_end: bool, extras: Extras = PLAIN
) -> NDArray[np.float32]:
    """The kernel's answer, (N, OC, OH, OW), with buffers at the end or the start of pages.

    A residual adds 3 to every sum, which is taken off again, so the last activation must be none
    and the dtype f32; a scale doubles, of an input that is halved.
    """
    code = machine_code(emit_separable(problem, plan, extras), plan.isa.target)
    function = Function(code, "run", [ctypes.c_void_p])
    values = np.ascontiguousarray(data.x.transpose(0, 2, 3, 1))
    x = _stored(values / np.float32(2 if extras.scale else 1), problem)
    weights = packed(problem, plan, data.weights)
    n, c, h, w = problem.output_shape
    sizes = (x.nbytes, n * h * w * c * x.itemsize, weights.nbytes)
    buffers = [Guarded(size, at_end) for size in (*sizes, plan.parts * part_bytes(problem, plan))]
    buffers[0].bytes[:] = x.reshape(-1).view(np.uint8)
    buffers[2].bytes[:] = weights
    residual = Guarded(sizes[1] if extras.residual else 0, at_end)
    residual.bytes.view(x.dtype)[:] = _ADDED
    scale = Guarded(n * problem.in_channels * x.itemsize if extras.scale else 0, at_end)
    scale.bytes.view(x.dtype)[:] = _stored(np.array([2], np.float32), problem)[0]
    pointers = [buffer.bytes.ctypes.data for buffer in buffers]
    names = ("omp_get_thread_num", "omp_get_num_threads")
    task = (ctypes.c_void_p * len(TASK_FIELDS))(
        *pointers,
        *(team.address_of(name) for name in names),
        residual.bytes.ctypes.data,
        scale.bytes.ctypes.data,
    )
    team.parallel()(function.address, task, plan.parts, 0)
    assert all(buffer.untouched for buffer in (*buffers, residual, scale))
    y = buffers[1].bytes.view(x.dtype).reshape(n, h, w, c)
    if problem.dtype == "bf16":
        y = (y.astype(np.uint32) << 16).view(np.float32)
    return y.transpose(0, 3, 1, 2) - np.float32(_ADDED if extras.residual else 0)


def random_plan(problem: Problem, isa: Isa, rng: np.random.Generator) -> Plan:
    """Any that the problem can have, on 1 to 4 threads of a CPU with caches of any size."""
    if isinstance(problem, Depthwise):
        return by_rows(problem, isa, int(rng.integers(1, 5)))
    caches = Caches(*(int(2 ** rng.integers(10, 22)) for _ in range(3)))
    plans = list(all_plans(problem, isa, int(rng.integers(1, 5)), caches))
    return plans[rng.integers(len(plans))]


def random_problem(rng: np.random.Generator) -> Problem:
    """Small ones often, so that tails and borders come up as often as the plain case."""
    while True:
        try:
            return _draw(rng)
        except ValueError:  # the kernel does not fit the padded image
            continue


def _draw(rng: np.random.Generator) -> Problem:
    def size(most: int) -> int:
        return int(min(most, 1 + rng.geometric(2.5 / most)))

    def one_or(most: int) -> int:
        return 1 if rng.random() < 0.2 else size(most)

    kernel = (one_or(7), one_or(7)) if rng.random() < 0.9 else (1, size(31))
    dilation = (1, 1) if rng.random() < 0.7 else (one_or(3), one_or(3))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    top, bottom = (int(rng.integers(0, reach[0])) for _ in range(2))
    left, right = (int(rng.integers(0, reach[1])) for _ in range(2))
    kind = str(rng.choice(["separable", "dense", "depthwise", "mean"], p=[0.6, 0.2, 0.15, 0.05]))
    activations = ACTIVATIONS if rng.random() < 0.3 else ("none", "relu", "relu6")
    sizes: dict[str, Any] = {
        "batch": one_or(3),
        "in_channels": one_or(40 if kind == "dense" else 140),
        "height": one_or(20),
        "width": one_or(60),
        "dtype": "f32" if rng.random() < 0.6 else "bf16",
    }
    if kind == "mean":
        return Mean.over(**sizes)
    first, last = (str(rng.choice(activations)) for _ in range(2))
    sizes |= {
        "out_channels": sizes["in_channels"] if kind == "depthwise" else one_or(140),
        "kernel": kernel,
        "stride": (1, 1) if rng.random() < 0.6 else (one_or(3), one_or(3)),
        "padding": (top, bottom, left, right),
        "dilation": dilation,
        "bias": bool(rng.random() < 0.7),
    }
    if kind == "dense":
        return Dense(**sizes, activations=("none", last))
    if kind == "depthwise":
        return Depthwise(**sizes, activations=(first, "none"))
    multiplier = 1 if rng.random() < 0.8 else size(3)
    return Problem(**sizes, channel_multiplier=multiplier, activations=(first, last))


def _stored(x: NDArray[np.float32], problem: Problem) -> NDArray[np.float32] | NDArray[np.uint16]:
    """In the problem's dtype; exact for the small integers of a check."""
    return x if problem.dtype == "f32" else (x.view(np.uint32) >> 16).astype(np.uint16)


def _mean_data(problem: Mean) -> CheckData:
    weights, x = integer_data(problem)
    means = np.full_like(weights.depthwise, 1 / (problem.height * problem.width))
    same = replace(weights, depthwise=means)
    expected, bound = separable(problem, same, x), error_bound(problem, same, x)
    return CheckData(same, x, expected, bound)


def main(seed: int, count: int) -> None:
    rng, isa = np.random.default_rng(seed), this_isa()
    for _ in range(count):
        problem, at_end = random_problem(rng), bool(rng.integers(2))
        plan = random_plan(problem, isa, rng)
        print(problem, plan.parts, plan.tile, at_end, flush=True)
        data = _mean_data(problem) if isinstance(problem, Mean) else CheckData.exact(problem)
        plain = problem.dtype == "f32" and problem.activations[1] == "none"
        extras = Extras(
            residual=plain and not isinstance(problem, Depthwise) and bool(rng.integers(2)),
            scale=can_be_scaled(problem),
        )
        found = run_guarded(problem, plan, data, at_end, extras)
        right, finding = data.verdict(found)
        if not right:
            raise SystemExit(f"wrong: {finding}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
