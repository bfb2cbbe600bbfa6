"""Runs fused kernels of random problems with forbidden pages around every buffer.

``python -m tests.codegen.guarded SEED COUNT [DOT]``: names each problem before it runs, so that the
last line is the one that was killed. DOT is a way of multiplying: only products by it are drawn.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.activations import ACTIVATIONS
from dnnsep.codegen.extras import PLAIN, Extras
from dnnsep.codegen.general import GeneralTask
from dnnsep.codegen.kernel import Room, Specialization
from dnnsep.codegen.lang.isa import Isa, this_isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.layer import Layer, layer_of
from dnnsep.codegen.pack import Packing
from dnnsep.codegen.plan import Plan, without_product
from dnnsep.codegen.task import KERNEL, Task
from dnnsep.codegen.weigh import Caches, all_plans
from dnnsep.dtypes import PRECISIONS, Array, ByteDtype, TensorDtype
from dnnsep.problem import Problem
from dnnsep.quantization import Affine
from dnnsep.sweep.check import CheckData
from dnnsep.weights import Weights
from tests.codegen.answers import answer
from tests.codegen.running import run_parts

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE
_PROT_NONE = 0
_UNTOUCHED = 0xA5
_SHARES = [0.45, 0.25, 0.1, 0.1, 0.1]


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


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a kernel is given, and the answer that is right for it: a residual like the output, (N,
    OC, OH, OW), and a scale, (N, C, 1, 1), as the extras say, change the answer too."""

    check: CheckData
    extras: Extras = PLAIN
    residual: Array | None = None
    scale: Array | None = None

    @classmethod
    def of(cls, problem: Problem, extras: Extras = PLAIN, seed: int = 0) -> Inputs:
        """Returns small integers, and the answer to the bit where integers stay integers."""
        data = CheckData.exact(problem, seed)
        if problem.precision.quantized and problem.keeps_integers and seed % 2:
            data = replace(CheckData.random(problem, seed), bound=None)
        if not (extras.residual or extras.scale):
            return cls(data, extras)
        rng = np.random.default_rng(seed)
        residual = scale = None
        destination = problem.precision.destination
        if extras.residual and isinstance(destination, ByteDtype):
            low = destination.low
            residual = rng.integers(low, low + 256, problem.output_shape).astype(np.float32)
            data = replace(data, weights=_adding(data.weights, rng, low))
        elif extras.residual:
            residual = rng.integers(-4, 5, problem.output_shape).astype(np.float32)
        if extras.scale:
            shape = (*problem.input_shape[:2], 1, 1)
            scale = rng.integers(-2, 3, shape).astype(np.float32)
        expected, bound = answer(problem, data.weights, data.x, residual, scale, extras.after)
        if data.bound is None:
            rounded = problem.precision.destination.rounded(expected)
            check = CheckData(data.weights, data.x, rounded.astype(np.float64), None)
        else:
            check = CheckData(data.weights, data.x, expected, bound)
        return cls(check, extras, residual, scale)


def _adding(weights: Weights, rng: np.random.Generator, low: int) -> Weights:
    """Returns the weights of a layer that adds bytes from ``low`` on: of scales near the output's,
    any zero point."""
    told = weights.quantization
    assert told is not None
    assert told.destination is not None
    scale = told.destination.scale * float(2 ** rng.uniform(-2, 2))
    affine = Affine(scale, int(rng.integers(low, low + 256)))
    return replace(weights, quantization=replace(told, residual=affine))


def run_guarded(problem: Problem, plan: Plan, inputs: Inputs, at_end: bool) -> Array:
    """Returns the answer of a plan's kernel, as ``answer_of``."""
    special = Specialization.of(problem, plan, inputs.extras)
    room = Room.of(problem, plan, inputs.extras)
    function = Function(machine_code(special.module(), plan.isa.target), "run", KERNEL)
    packing = Packing(layer_of(problem, plan.isa), plan.vectors)
    task = Task(tile=plan.tile, tile_bytes=room.tile)
    return answer_of(problem, packing, function, task, (plan.parts, room.part), inputs, at_end)


def answer_of(
    problem: Problem,
    packing: Packing,
    function: Function,
    task: Task | GeneralTask,
    work: tuple[int, int],
    inputs: Inputs,
    at_end: bool,
) -> Array:
    """Returns a kernel's answer, (N, OC, OH, OW), with each buffer at the end of pages, or at
    their start, for a task without addresses; ``work`` is how many parts there are and the bytes
    that each needs. Between the channels of two pixels there is NaN in what is given, which must
    not come into the answer, and what must stay in the output."""
    source, dtype = problem.precision.source, problem.precision.destination
    pitches = inputs.extras.pitches(packing.layer)
    given = {
        "x": in_memory(inputs.check.x, source, pitches.x),
        "packed": packing.pack(inputs.check.weights),
        "residual": in_memory(inputs.residual, dtype, pitches.residual),
        "scale": in_memory(inputs.scale, source, problem.in_channels),
    }
    sizes = {name: content.size for name, content in given.items()}
    n, c, h, w = problem.output_shape
    sizes["y"] = ((n * h * w - 1) * pitches.y + c) * dtype.bytes
    parts, part_bytes = work
    sizes["scratch"] = 2 * part_bytes
    buffers = {name: Guarded(size, at_end) for name, size in sizes.items()}
    for name, content in given.items():
        buffers[name].bytes[:] = content
    for name in (*given, "y"):
        setattr(task, name, buffers[name].bytes.ctypes.data)
    run_parts(function, task, parts, buffers["scratch"].bytes.ctypes.data, part_bytes)
    assert all(buffer.untouched for buffer in buffers.values())
    assert all((buffers[name].bytes == content).all() for name, content in given.items())
    room_of_y = np.full(n * h * w * pitches.y * dtype.bytes, _UNTOUCHED, np.uint8)
    room_of_y[: sizes["y"]] = buffers["y"].bytes
    pixels = room_of_y.reshape(n, h, w, pitches.y * dtype.bytes)
    assert (pixels[..., c * dtype.bytes :] == _UNTOUCHED).all()
    element = {1: np.uint8, 2: np.uint16, 4: np.float32}[dtype.bytes]
    y = dtype.loaded(np.ascontiguousarray(pixels[..., : c * dtype.bytes]).view(element))
    return y.transpose(0, 3, 1, 2)


def in_memory(values: Array | None, dtype: TensorDtype, pitch: int) -> NDArray[np.uint8]:
    """Returns values (N, C, H, W) channels-last with pixels so many elements apart and NaN, or
    bytes of 111, between them, up to the last channel of the last pixel; nothing of None."""
    if values is None:
        return np.zeros(0, np.uint8)
    n, c, h, w = values.shape
    pixels = np.full((n, h, w, pitch), np.nan if dtype.bytes > 1 else 111, np.float32)
    pixels[..., :c] = values.transpose(0, 2, 3, 1)
    flat = pixels.reshape(-1)[: (n * h * w - 1) * pitch + c]
    return dtype.stored(flat).view(np.uint8)


@dataclass(frozen=True)
class Case:
    """A kernel, and where its buffers are; prints itself as what tells it from others."""

    problem: Problem
    plan: Plan
    extras: Extras
    at_end: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, isa: Isa, dot: str | None = None) -> Case:
        """Returns any kernel on these vectors; with ``dot`` any whose products are by that way of
        multiplying, or with "bytes" any of a quantised problem."""
        if dot == "bytes":
            return cls._of_bytes(rng, isa)
        while True:
            problem = random_problem(rng)
            layer = layer_of(problem, isa)
            if dot is None or (layer.product is not None and layer.dot.name == dot):
                break
        extras = random_extras(layer, rng, scales=problem.kind == "convolution")
        return cls(problem, random_plan(problem, isa, rng), extras, bool(rng.integers(2)))

    @classmethod
    def _of_bytes(cls, rng: np.random.Generator, isa: Isa) -> Case:
        names = [name for name, precision in PRECISIONS.items() if precision.quantized]
        while True:
            problem = random_problem(rng)
            if problem.kind != "mean" and problem.channel_multiplier == 1:
                break
        dtype = "u8s8" if rng.random() < 0.5 else str(rng.choice(names))
        problem = replace(problem, dtype=dtype)
        extras = random_extras(layer_of(problem, isa), rng, scales=False)
        extras = replace(extras, after=False)
        if layer_of(problem, isa).product is None:
            extras = replace(extras, residual=False, residual_pitch=0)
        return cls(problem, random_plan(problem, isa, rng), extras, bool(rng.integers(2)))

    def __str__(self) -> str:
        plan = self.plan
        names = [
            name for name, there in {**vars(plan), **vars(self.extras)}.items() if there is True
        ]
        names += [f"{name} {pitch}" for name, pitch in vars(self.extras).items() if pitch > 1]
        side = "end" if self.at_end else "start"
        return f"{self.problem} {plan.parts} parts, tile {plan.tile}, {side}, {' '.join(names)}"

    def finding(self, seed: int = 0) -> str:
        """Runs it; returns what is wrong, nothing where all is right."""
        inputs = Inputs.of(self.problem, self.extras, seed)
        found = run_guarded(self.problem, self.plan, inputs, self.at_end)
        right, finding = inputs.check.verdict(found)
        return "" if right else finding


def random_extras(layer: Layer, rng: np.random.Generator, scales: bool) -> Extras:
    """Returns any that a layer can have; a scale where it ``scales``."""

    def pitch(channels: int) -> int:
        return channels + int(rng.integers(0, 80)) if rng.random() < 0.3 else 0

    weighs = layer.product is not None or layer.source is not None
    residual = weighs and rng.random() < 0.3
    pointwise = layer.product is not None and layer.source is None
    return Extras(
        residual=residual,
        scale=scales and pointwise and rng.random() < 0.5,
        after=residual and rng.random() < 0.4,
        x_pitch=pitch(layer.channels),
        y_pitch=pitch(layer.out_channels),
        residual_pitch=pitch(layer.out_channels) if residual else 0,
    )


def random_plan(problem: Problem, isa: Isa, rng: np.random.Generator) -> Plan:
    """Returns any that the problem can have, on 1 to 4 threads of a CPU with caches of any size."""
    layer = layer_of(problem, isa)
    if layer.product is None:
        return without_product(problem, layer, int(rng.integers(1, 5)))
    l1, l2, last = (int(2 ** rng.integers(10, 22)) for _ in range(3))
    plans = list(all_plans(problem, isa, int(rng.integers(1, 5)), Caches(l1, l2, last)))
    plan = plans[rng.integers(len(plans))]
    if layer.reads_input:  # whichever of the two is chosen, the other has to be right as well
        plan = replace(plan, gathers=bool(rng.integers(2)))
    return plan


def random_problem(rng: np.random.Generator) -> Problem:
    """Returns any; small ones often, so that tails and borders come up as often as the plain
    case."""
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
    if kind == "convolution" and rng.random() < 0.5:  # whole rounds: taps can be left out
        channels = -(-channels // 8) * 8
    dtype = "f32" if rng.random() < 0.6 else "bf16"
    out_channels = channels if kind == "depthwise" else one_or(140)
    if kind != "depthwise" and rng.random() < 0.3:  # whole vectors: such outputs are streamed
        out_channels = -(-out_channels // 16) * 16
    if kind == "mean":
        return Problem.mean(one_or(3), channels, one_or(20), one_or(60), dtype)
    sizes: dict[str, Any] = {
        "batch": one_or(3),
        "in_channels": channels,
        "out_channels": out_channels,
        "bias": bool(rng.random() < 0.7),
        "activations": activations,
        "dtype": dtype,
        "kind": kind,
    }
    if kind == "linear":
        return Problem(**{**sizes, "batch": one_or(60)}, height=1, width=1, kernel=(1, 1))
    kernel = (one_or(7), one_or(7)) if rng.random() < 0.9 else (1, size(31))
    if kind == "convolution" and rng.random() < 0.4:  # pointwise: it may have extras
        return Problem(**sizes, height=one_or(20), width=one_or(60), kernel=(1, 1))
    dilation = (1, 1) if rng.random() < 0.7 else (one_or(3), one_or(3))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if rng.random() < 0.2:  # beyond the kernel, and cropped below and right
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


def main(seed: int, count: int, dot: str | None = None) -> None:
    rng, isa = np.random.default_rng(seed), this_isa()
    for number in range(count):
        case = Case.draw(rng, isa, dot)
        print(case, flush=True)
        finding = case.finding(number)
        if finding:
            raise SystemExit(f"wrong: {finding}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
