"""Runs fused kernels of random problems with forbidden pages around every buffer.

``python -m tests.codegen.guarded SEED COUNT``: names each problem before it runs, so that the last
line is the one that was killed.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import ACTIVATIONS
from dnnsep.codegen import team
from dnnsep.codegen.choose import Caches, all_plans
from dnnsep.codegen.fuse import PLAIN, Extras
from dnnsep.codegen.kernel import Specialization
from dnnsep.codegen.lang.isa import Isa, this_isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.layer import layer_of
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.plan import Plan, without_product
from dnnsep.codegen.task import Task
from dnnsep.dtypes import DTYPES
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE
_PROT_NONE = 0
_UNTOUCHED = 0xA5
_ADDED = 3
_SHARES = [0.55, 0.2, 0.1, 0.1, 0.05]


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
    special = Specialization.of(problem, plan, extras)
    function = Function(machine_code(special.module(), plan.isa.target), "run", [ctypes.c_void_p])
    dtype = DTYPES[problem.dtype]
    values = np.ascontiguousarray(data.x.transpose(0, 2, 3, 1))
    x = dtype.stored(values / np.float32(2 if extras.scale else 1))
    weights = Packing(layer_of(problem, plan.isa), plan.vectors).pack(data.weights)
    n, c, h, w = problem.output_shape
    y_bytes = n * h * w * c * dtype.bytes
    scales = n * problem.in_channels * dtype.bytes if extras.scale else 0
    buffers = {
        name: Guarded(size, at_end)
        for name, size in (
            ("x", x.nbytes),
            ("y", y_bytes),
            ("packed", weights.nbytes),
            ("scratch", special.scratch_bytes),
            ("residual", y_bytes if extras.residual else 0),
            ("scale", scales),
        )
    }
    buffers["x"].bytes[:] = x.reshape(-1).view(np.uint8)
    buffers["packed"].bytes[:] = weights
    buffers["residual"].bytes.view(x.dtype)[:] = dtype.stored(np.array([_ADDED], np.float32))[0]
    buffers["scale"].bytes.view(x.dtype)[:] = dtype.stored(np.array([2], np.float32))[0]
    task = Task(
        **{name: buffer.bytes.ctypes.data for name, buffer in buffers.items()},
        thread_number=team.address_of("omp_get_thread_num"),
        thread_count=team.address_of("omp_get_num_threads"),
    )
    team.parallel()(function.address, ctypes.addressof(task), plan.parts, 0)
    assert all(buffer.untouched for buffer in buffers.values())
    y = dtype.loaded(buffers["y"].bytes.view(x.dtype)).reshape(n, h, w, c)
    return y.transpose(0, 3, 1, 2) - np.float32(_ADDED if extras.residual else 0)


def random_plan(problem: Problem, isa: Isa, rng: np.random.Generator) -> Plan:
    """Any that the problem can have, on 1 to 4 threads of a CPU with caches of any size."""
    if not problem.sums_over_channels:
        return without_product(problem, layer_of(problem, isa), int(rng.integers(1, 5)))
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

    kind = str(rng.choice(["separable", "convolution", "depthwise", "linear", "mean"], p=_SHARES))
    names = tuple(ACTIVATIONS) if rng.random() < 0.3 else ("none", "relu", "relu6")
    activations = tuple(str(rng.choice(names)) for _ in range(2 if kind == "separable" else 1))
    channels = one_or(40 if kind == "convolution" else 140)
    dtype = "f32" if rng.random() < 0.6 else "bf16"
    if kind == "mean":
        return Problem.mean(one_or(3), channels, one_or(20), one_or(60), dtype)
    sizes: dict[str, Any] = {
        "batch": one_or(3),
        "in_channels": channels,
        "out_channels": channels if kind == "depthwise" else one_or(140),
        "bias": bool(rng.random() < 0.7),
        "activations": activations,
        "dtype": dtype,
        "kind": kind,
    }
    if kind == "linear":
        return Problem(**{**sizes, "batch": one_or(60)}, height=1, width=1, kernel=(1, 1))
    kernel = (one_or(7), one_or(7)) if rng.random() < 0.9 else (1, size(31))
    if kind == "convolution" and rng.random() < 0.3:
        kernel = (1, 1)
    dilation = (1, 1) if rng.random() < 0.7 else (one_or(3), one_or(3))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if rng.random() < 0.1:  # beyond the kernel, and cropped below and right
        sides = [int(rng.integers(low, 2 * r + 2)) for r in reach for low in (0, -r)]
    else:
        sides = [int(rng.integers(0, r)) for r in reach for _ in range(2)]
    return Problem(
        **sizes,
        height=one_or(20),
        width=one_or(60),
        kernel=kernel,
        stride=(1, 1) if rng.random() < 0.6 else (one_or(3), one_or(3)),
        padding=(sides[0], sides[1], sides[2], sides[3]),
        dilation=dilation,
        channel_multiplier=1 if kind != "separable" or rng.random() < 0.8 else size(3),
    )


def main(seed: int, count: int) -> None:
    rng, isa = np.random.default_rng(seed), this_isa()
    for _ in range(count):
        problem, at_end = random_problem(rng), bool(rng.integers(2))
        plan = random_plan(problem, isa, rng)
        print(problem, plan.parts, plan.tile, at_end, flush=True)
        data = CheckData.exact(problem)
        sums = problem.sums_over_channels
        plain = problem.dtype == "f32" and problem.activations[-1:] == ("none",)
        trivial = problem.kind == "convolution" and layer_of(problem, isa).window.trivial
        extras = Extras(
            residual=sums and plain and bool(rng.integers(2)),
            scale=trivial and bool(rng.integers(2)),
        )
        found = run_guarded(problem, plan, data, at_end, extras)
        right, finding = data.verdict(found)
        if not right:
            raise SystemExit(f"wrong: {finding}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
