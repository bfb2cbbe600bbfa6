"""How fast each way of multiplying runs on this CPU, and its caches: measured once.

Some CPUs have instructions that they run slowly, so what a CPU has says little of what is best on
it. Measured is the generated product itself, on data that fits the first cache, and reading from
each level of the memory.
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
from numpy.typing import NDArray

from dnnsep.codegen.dots import DOTS, Dot, VectorDot
from dnnsep.codegen.dots.amx import AmxDot
from dnnsep.codegen.lang.emit import I64, POINTER, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function, machine_code, this_cpu
from dnnsep.codegen.lang.tiles import tile_unit
from dnnsep.codegen.stages.matmul import Matmul, Product
from dnnsep.codegen.stages.tileproduct import SHADOW_BYTES, SUMS_BYTES, TileProduct, set_field
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles
from dnnsep.host.caches import sizes_of_caches

# A product of few channels shows what it costs beside its steps; one of many, what its steps cost.
FEW, MANY = 32, 128
_SLICES, _SLICE_NS = 12, 100_000
# How often each level of the memory is read, how much of it at most, by how many vectors at a time.
_READS, _MOST_BYTES, _VECTORS = 5, 64 << 20, 8
_LINE = 64
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

    def as_dict(self) -> dict[str, float]:
        """Returns the GFLOP/s of a core by few and by many channels."""
        return {f"gflops_{depth}": round(self.gflops(depth), 1) for depth in (FEW, MANY)}

    def gflops(self, depth: int) -> float:
        """Returns 2 FLOPs for each multiply-add of a product of so many channels a nanosecond."""
        return 2 * self.macs * depth / self.ns(depth)


@dataclass(frozen=True)
class Rates:
    """Those of a CPU: of each of its ways of multiplying, by name, and the nanoseconds that a
    thread takes to read a line of 64 bytes from each level of the memory (``L2``, ``L3``,
    ``DRAM``) where many follow each other."""

    isa: Isa
    dots: dict[str, Rate]
    line_ns: dict[str, float]

    @property
    def cycle_ns(self) -> float:
        """A cycle, as long as it is where products in f32 take as many as ``Dot.cycles`` says."""
        (plain,) = (dot for dot in DOTS if dot.name == "fma_f32")
        pixels = plain.pixels(self.isa, plain.vectors)
        return self.dots[plain.name].many_ns / plain.cycles(self.isa, pixels, plain.vectors, MANY)

    def slowness(self, dot: Dot, depth: int) -> float:
        """Returns how many times as long a product takes as ``Dot.cycles`` says."""
        if dot.name == "fma_f32":
            return 1.0
        cycles = dot.cycles(self.isa, dot.pixels(self.isa, dot.vectors), dot.vectors, depth)
        return self.dots[dot.name].ns(depth) / self.cycle_ns / cycles


def measured_on(isa: Isa) -> str:
    """Returns what measurements are filed under: the generator, the instructions, and the CPU with
    its caches, since the same instructions are as fast as the CPU that runs them."""
    return f"{generator()} {isa} {this_cpu()} {sizes_of_caches()}"


@lru_cache(16)
def rates(isa: Isa) -> Rates:
    """Returns what was measured on a CPU: by the first process that asks, in some milliseconds on
    the thread that asks, and kept for later ones."""
    key = measured_on(isa)
    with _lock:
        kept = cachefiles.load("rates", key)
        if kept is not None:
            fields = json.loads(kept)
            dots = {name: Rate(**rate) for name, rate in fields["dots"].items()}
            return Rates(isa, dots, fields["line_ns"])
        found = Rates(isa, _measured_dots(isa), _measured_lines(isa))
        fields = {"dots": {n: vars(r) for n, r in found.dots.items()}, "line_ns": found.line_ns}
        cachefiles.save("rates", key, json.dumps(fields).encode())
        return found


def _measured_dots(isa: Isa) -> dict[str, Rate]:
    """Runs all products in turn, and takes the shortest time of each.

    A product by many channels takes as long as one by few where sums take longer to be drained
    than tiles to be multiplied beside it. So that no depth takes less than a smaller one, it then
    counts as what the longer of both took."""
    dots = [dot for dot in DOTS if all(map(isa.has, dot.needs))]
    loops = {(dot.name, depth): _Loop(dot, isa, depth) for dot in dots for depth in (FEW, MANY)}
    best = {key: loop.once() for key, loop in loops.items()}
    for _ in range(_SLICES):
        for key, loop in loops.items():
            best[key] = min(best[key], loop.once())
    return {
        dot.name: Rate(
            few_ns=best[dot.name, FEW],
            many_ns=max(best[dot.name, depth] for depth in (FEW, MANY)),
            macs=dot.pixels(isa, dot.vectors) * dot.vectors * isa.lanes,
        )
        for dot in dots
    }


def _measured_lines(isa: Isa) -> dict[str, float]:
    """Reads half of what a level holds, and for DRAM twice what the last one holds, and takes the
    shortest time. More than ``_MOST_BYTES`` is not read: where the last cache holds as much, what
    DRAM costs is taken to be what that cache does."""
    caches = sizes_of_caches()
    sizes = {
        "L2": caches[1] // 2,
        "L3": min(caches[2] // 2, _MOST_BYTES),
        "DRAM": min(2 * caches[2], _MOST_BYTES),
    }
    module = ir.Module()
    module.triple = ""
    code = Code(module, "run", [POINTER, I64, POINTER])
    memory, blocks, sink = code.arguments
    kind = ir.VectorType(I64, isa.lanes // 2)

    def read(at: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        first = code.builder.mul(at, I64(len(sums)))
        block = code.at(memory, first, kind)
        return [
            code.builder.or_(total, code.load(code.at(block, n, kind), kind))
            for n, total in enumerate(sums)
        ]

    nothing = ir.Constant(kind, None)
    for n, total in enumerate(code.for_range(I64(0), blocks, read, [nothing] * _VECTORS)):
        code.store(total, code.at(sink, n, kind))
    code.end()
    arguments = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    run = Function(machine_code(module, isa.target), "run", arguments)
    block_bytes = _VECTORS * isa.lanes * 4
    content, sums = np.ones(max(sizes.values()), np.uint8), np.zeros(block_bytes, np.uint8)
    found = {}
    for level, size in sizes.items():
        times = []
        for _ in range(_READS):
            start = perf_counter_ns()
            run(content.ctypes.data, size // block_bytes, sums.ctypes.data)
            times.append(perf_counter_ns() - start)
        found[level] = min(times) / (size / 64)
    return found


class _Loop:
    """Runs a product over and over."""

    def __init__(self, dot: Dot, isa: Isa, depth: int) -> None:
        pixels, columns = dot.pixels(isa, dot.vectors), dot.vectors * isa.lanes
        rng = np.random.default_rng(0)
        matrix = (1 + rng.random((depth, columns))).astype(np.float32)
        packed = dot.pack(matrix, isa)
        ones = np.ones(depth * pixels, np.uint8)
        if dot.bytes > 1:
            ones = dot.pack(np.ones((depth, pixels), np.float32), isa)
        room = [np.zeros(size, np.uint8) for size in (4 * 7 * columns, 4 * pixels * columns)]
        buffers = [ones, packed, *room, np.zeros(_SHADOW, np.uint8)]
        self._buffers = [_aligned(buffer.view(np.uint8)) for buffer in buffers]
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


def _aligned(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns bytes in memory that starts at a line, as kernels find theirs: rows of tiles that
    cross lines take twice as long."""
    room = np.empty(content.size + _LINE, np.uint8)
    memory = room[-room.ctypes.data % _LINE :][: content.size]
    memory[:] = content
    return memory


_SHADOW = SHADOW_BYTES + 2 * SUMS_BYTES


def _looped(dot: Dot, isa: Isa, depth: int, pixels: int, columns: int) -> ir.Module:
    """Returns a module with run(rows, weights, table, y, shadow, times)."""
    stage = Matmul(depth, columns, "none", dot.dtype)
    module = ir.Module()
    module.triple = ""
    code = Code(module, "run", [*[POINTER] * 5, I64])
    rows, weights, table, y, shadow, times = code.arguments
    if isinstance(dot, VectorDot):
        product = Product(
            stage,
            isa,
            dot,
            stride=depth,
            depth=depth,
            pixels=pixels,
            columns=columns,
            y_pitch=columns,
            prefetch=None,
            ahead=None,
            residual=None,
            streaming=False,
        ).emit(module, "matmul")
        arguments = [rows, weights, table, y, y, rows, weights]
        code.for_each(I64(0), times, lambda _: code.builder.call(product, arguments))
        code.end()
        return module
    assert isinstance(dot, AmxDot)
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
        y_pitch=columns,
        residual=None,
        streaming=False,
        overlap=True,
    )
    product = tiles.emit(module, pixels, columns, tiles.emit_beside(module, None))
    set_field(code, shadow, "rows", 0)
    set_field(code, shadow, "free", code.at(shadow, SHADOW_BYTES, ir.IntType(8)))
    state = unit.enter(code, tiles.shapes())
    arguments = [rows, weights, table, y, y, shadow, state]
    code.for_each(I64(0), times, lambda _: code.builder.call(product, arguments))
    unit.leave(code, state)
    code.end()
    return module
