"""How fast each way of multiplying runs on this CPU: measured once, since flags mislead.

Some CPUs have instructions that they run slowly, so what a CPU has says little of what is best on
it. Measured is the generated product itself, on a few KiB that stay in the first cache.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from time import perf_counter_ns

import numpy as np
from llvmlite import ir

from dnnsep.codegen.dots import DOTS, Dot, VectorDot
from dnnsep.codegen.dots.amx_bf16 import AmxBf16
from dnnsep.codegen.lang.emit import I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.lang.tiles import tile_unit
from dnnsep.codegen.stages.matmul import Matmul, Product
from dnnsep.codegen.stages.tileproduct import SHADOW_BYTES, SUMS_BYTES, TileProduct, set_field
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles

# A product of few channels shows what it costs beside its steps; one of many, what its steps cost.
FEW, MANY = 32, 256
_SLICES, _SLICE_NS = 12, 100_000
_lock = Lock()


@dataclass(frozen=True)
class Rate:
    """Nanoseconds of a product of as many pixels and output channels as a way of multiplying takes
    at once, by FEW and by MANY channels, and the multiply-adds of a channel."""

    few_ns: float
    many_ns: float
    macs: int

    def ns(self, depth: int) -> float:
        """Returns what a product of so many channels takes."""
        return self.few_ns + (depth - FEW) * (self.many_ns - self.few_ns) / (MANY - FEW)

    def gflops(self, depth: int) -> float:
        """Returns 2 FLOPs for each multiply-add of a product of so many channels a nanosecond."""
        return 2 * self.macs * depth / self.ns(depth)


@lru_cache(8)
def rates(isa: Isa) -> dict[str, Rate]:
    """Returns the rate of each way of multiplying that a CPU has, by name: measured by the first
    process that asks, in some milliseconds on the thread that asks, and kept for later ones."""
    key = f"{generator()} {isa}"
    with _lock:
        kept = cachefiles.load("rates", key)
        if kept is not None:
            return {name: Rate(**fields) for name, fields in json.loads(kept).items()}
        found = _measured(isa)
        content = json.dumps({name: vars(rate) for name, rate in found.items()})
        cachefiles.save("rates", key, content.encode())
        return found


def slowness(dot: Dot, isa: Isa, depth: int) -> float:
    """Returns how many times as long a product takes as ``Dot.cycles`` says, in cycles of the f32
    multiply-add, whose products take as long as it says."""
    if dot.name == "fma_f32" or isa.software_tiles:
        return 1.0
    known = rates(isa)
    (plain,) = (other for other in DOTS if other.name == "fma_f32")
    pixels, nominal = plain.pixels(isa, plain.vectors), known[plain.name]
    ns_a_cycle = nominal.many_ns / plain.cycles(isa, pixels, plain.vectors, MANY)
    cycles = dot.cycles(isa, dot.pixels(isa, dot.vectors), dot.vectors, depth)
    return known[dot.name].ns(depth) / ns_a_cycle / cycles


def _measured(isa: Isa) -> dict[str, Rate]:
    """Runs all products in turn, and takes the shortest time of each."""
    dots = [dot for dot in DOTS if all(map(isa.has, dot.needs))]
    loops = {(dot.name, depth): _Loop(dot, isa, depth) for dot in dots for depth in (FEW, MANY)}
    best = {key: loop.once() for key, loop in loops.items()}
    for _ in range(_SLICES):
        for key, loop in loops.items():
            best[key] = min(best[key], loop.once())
    return {
        dot.name: Rate(
            few_ns=best[dot.name, FEW],
            many_ns=best[dot.name, MANY],
            macs=dot.pixels(isa, dot.vectors) * dot.vectors * isa.lanes,
        )
        for dot in dots
    }


class _Loop:
    """Runs a product over and over."""

    def __init__(self, dot: Dot, isa: Isa, depth: int) -> None:
        pixels, columns = dot.pixels(isa, dot.vectors), dot.vectors * isa.lanes
        rng = np.random.default_rng(0)
        matrix = (1 + rng.random((depth, columns))).astype(np.float32)
        self._packed = dot.pack(matrix)
        ones = dot.pack(np.ones((depth, pixels), np.float32))
        room = [np.zeros(size, np.uint8) for size in (4 * columns, 4 * pixels * columns)]
        self._buffers = [ones, self._packed, *room, np.zeros(_SHADOW, np.uint8)]
        self._addresses = [buffer.ctypes.data for buffer in self._buffers]
        module = _looped(dot, isa, depth, pixels, columns)
        code = machine_code(module, isa.target)
        self._run = Function(code, "run", [*[ctypes.c_void_p] * 5, ctypes.c_int64])
        self._times = 1
        while self._ns() < _SLICE_NS:
            self._times *= 2

    def once(self) -> float:
        """Returns the nanoseconds of a product, the mean over a slice of time."""
        return self._ns() / self._times

    def _ns(self) -> int:
        start = perf_counter_ns()
        self._run(*self._addresses, self._times)
        return perf_counter_ns() - start


_SHADOW = SHADOW_BYTES + 2 * SUMS_BYTES


def _looped(dot: Dot, isa: Isa, depth: int, pixels: int, columns: int) -> ir.Module:
    """Returns a module with run(rows, weights, bias, y, shadow, times)."""
    stage = Matmul(depth, columns, "none", dot.dtype)
    module = ir.Module()
    module.triple = ""
    code = Code(module, "run", [*[POINTER] * 5, I64])
    rows, weights, bias, y, shadow, times = code.arguments
    if isinstance(dot, VectorDot):
        product = Product(
            stage,
            isa,
            dot,
            stride=depth,
            depth=depth,
            pixels=pixels,
            columns=columns,
            prefetch=None,
            ahead=None,
            residual=False,
            streaming=False,
        ).emit(module)
        arguments = [rows, weights, bias, y, y, rows, weights]
        code.for_each(I64(0), times, lambda _: code.builder.call(product, arguments))
        code.end()
        return module
    assert isinstance(dot, AmxBf16)
    unit = tile_unit(isa)
    tiles = TileProduct(
        stage,
        isa,
        dot,
        unit,
        stride=depth,
        depth=depth,
        least=pixels,
        panels=(columns, 0),
        residual=False,
        streaming=False,
        overlap=True,
    )
    product = tiles.emit(module, pixels, columns, tiles.emit_beside(module, None))
    set_field(code, shadow, "rows", 0)
    set_field(code, shadow, "free", code.at(shadow, SHADOW_BYTES, ir.IntType(8)))
    state = unit.enter(code, tiles.shapes())
    arguments = [rows, weights, bias, y, y, shadow, state]
    code.for_each(I64(0), times, lambda _: code.builder.call(product, arguments))
    unit.leave(code, state)
    code.end()
    return module
