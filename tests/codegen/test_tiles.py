"""A tile unit and the products on it: tiles of any size, tails, what is done in the shadow."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.dots.amx import AmxBf16
from dnnsep.codegen.dots.dp_bf16 import DpBf16
from dnnsep.codegen.kernel import Specialization
from dnnsep.codegen.lang.emit import POINTER, Code
from dnnsep.codegen.lang.isa import Isa, this_isa
from dnnsep.codegen.lang.jit import Function, Target, assembly, machine_code
from dnnsep.codegen.lang.tiles import (
    ROW_BYTES,
    ROWS,
    TILES,
    CpuTiles,
    SoftwareTiles,
    TileShape,
    TileUnit,
)
from dnnsep.codegen.stages.matmul import Matmul
from dnnsep.codegen.stages.residual import Residual
from dnnsep.codegen.stages.tileproduct import (
    SHADOW_BYTES,
    SUMS_BYTES,
    Shadow,
    TileProduct,
    set_field,
)
from dnnsep.codegen.weigh import Caches, all_plans
from dnnsep.dtypes import BF16, Array
from dnnsep.problem import Problem
from tests.codegen.conftest import ISAS
from tests.codegen.pieces import JUNK, Memory

AMX = Target("sapphirerapids", "+amx-tile,+amx-bf16")
CACHES = Caches(48 << 10, 2 << 20, 32 << 20)
# Where this CPU has tiles, all is run on both units.
HAS_TILES = any(isa.has("amx-bf16") and not isa.software_tiles for isa in ISAS)
UNITS: list[TileUnit] = [SoftwareTiles(), *([CpuTiles()] if HAS_TILES else [])]
SOFTWARE = [isa for isa in ISAS if isa.software_tiles]


def _units(isa: Isa) -> list[TileUnit]:
    """Returns the units that code for these instructions can use: AMX needs code for its CPU."""
    return UNITS if isa.lanes == 16 else UNITS[:1]


def _emit(unit: TileUnit, shapes: list[TileShape], body: Callable[..., None]) -> ir.Module:
    """Returns a module with run(a, b, c), which ``body(code, unit's state)`` writes."""
    module = ir.Module()
    module.triple = ""
    code = Code(module, "run", [POINTER] * 3)
    state = unit.enter(code, shapes)
    body(code, state)
    unit.leave(code, state)
    code.end()
    return module


def _multiplication(unit: TileUnit, rows: int, channels: int, columns: int) -> ir.Module:
    """Returns a module with run(a, b, c), which adds a times b to c, without a byte between rows of
    a and b, and with one more row's bytes between those of c."""
    shapes = [TileShape(rows, 4 * columns), *[TileShape(1, 4)] * 3]
    shapes += [
        TileShape(rows, 2 * channels),
        TileShape(1, 4),
        TileShape(channels // 2, 4 * columns),
    ]

    def body(code: Code, state: ir.Value) -> None:
        a, b, c = code.arguments
        unit.load(code, state, 0, c, 8 * columns)
        unit.load(code, state, 4, a, 2 * channels)
        unit.load(code, state, 6, b, 4 * columns)
        unit.multiply_bf16(code, state, 0, 4, 6)
        unit.store(code, state, 0, c, 8 * columns)

    return _emit(unit, shapes, body)


def _product_of(a: Array, b: Array, c: Array) -> Array:
    """Returns what tdpbf16ps makes of a tile: each pair's two products are added up apart, in f32
    without rounding in between; numbers that f32 has no normal form of are zero."""

    def flushed(values: Array) -> Array:
        tiny = np.abs(values) < np.finfo(np.float32).tiny
        return np.where(tiny, np.float32(0), values)

    def fma(x: Array, y: Array, total: Array) -> Array:
        exact = x.astype(np.float64) * y.astype(np.float64) + total.astype(np.float64)
        return flushed(exact.astype(np.float32))

    a, b, c = flushed(a), flushed(b), flushed(c)
    sums = [np.zeros_like(c), np.zeros_like(c)]
    for channel in range(a.shape[1]):
        half = channel % 2
        sums[half] = fma(a[:, channel, None], b[None, channel], sums[half])
    return flushed(c + flushed(sums[0] + sums[1]))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: type(unit).__name__)
@pytest.mark.parametrize("kind", ["integers", "random", "tiny"])
def test_a_tile_times_a_tile(kind: str, unit: TileUnit) -> None:
    """Nothing beyond the rows and columns of the configuration is read or written."""
    rng = np.random.default_rng(0)
    for rows, channels, columns in [(16, 32, 16), (1, 2, 1), (5, 12, 7), (16, 30, 8), (3, 32, 16)]:
        code = machine_code(_multiplication(unit, rows, channels, columns))
        run = Function(code, "run", [ctypes.c_void_p] * 3)

        def draw(*size: int) -> Array:
            if kind == "integers":
                return rng.integers(-3, 4, size).astype(np.float32)
            scale = np.float32(2.0**-126 if kind == "tiny" else 1)
            return BF16.rounded(rng.standard_normal(size, dtype=np.float32)) * scale

        a, b, c = draw(rows, channels), draw(channels, columns), draw(rows, columns)
        if kind == "tiny":  # so that some of the products are normal numbers
            b = np.sign(b).astype(np.float32)
        spread = np.full((rows, 2 * columns), JUNK)
        spread[:, :columns] = c
        flat = spread.reshape(-1)[: (2 * rows - 1) * columns]
        for at_end in (False, True):
            given = [Memory(BF16.stored(a), at_end), Memory(DpBf16().pack(b, SOFTWARE[0]), at_end)]
            sums = Memory(flat, at_end)
            run(given[0].at(0), given[1].at(0), sums.at(0))
            found = np.append(sums.array, np.zeros(columns, np.float32)).reshape(rows, 2, columns)
            assert np.array_equal(found[:, 0], _product_of(a, b, c))
            assert (found[:-1, 1] == JUNK).all()
            assert all(memory.unchanged for memory in given)


def test_amx_multiplies_by_its_instructions() -> None:
    text = assembly(_multiplication(CpuTiles(), 16, 32, 16), AMX)
    operations = [line.split()[0] for line in text.splitlines() if line.startswith("\t")]
    wanted = ["ldtilecfg", *["tileloadd"] * 3, "tdpbf16ps", "tilestored", "tilerelease"]
    assert [name for name in operations if name.startswith(("ldt", "tile", "tdp"))] == wanted


def test_tiles_are_asked_for_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNSEP_TILE_UNIT", "hardware")
    with pytest.raises(ValueError, match="DNNSEP_TILE_UNIT='hardware': must be cpu or software"):
        this_isa()


def test_a_kernel_for_amx_holds_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``explain --dump asm`` shows it on a CPU that has them."""
    monkeypatch.setattr("dnnsep.codegen.layer.Layer.slowness", 1.0)
    isa = replace(
        SOFTWARE[-1], features=("avx512bf16", "amx-bf16"), target=AMX, software_tiles=False
    )
    problem = Problem.parse("mb1ic128oc256ih28kh3ph1_act:relu,relu_bf16")
    plan = next(plan for plan in all_plans(problem, isa, 2, CACHES) if plan.overlap)
    text = assembly(Specialization.of(problem, plan).module(), isa.target)
    assert text.count("ldtilecfg") == 1  # one configuration a call and thread
    for name in ("tdpbf16ps", "tileloadd", "tilestored", "tilerelease", "vcvtne2ps2bf16"):
        assert name in text


@dataclass(frozen=True)
class Shape:
    """A product: pixels, the least that a piece of the kernel has, channels, output channels."""

    pixels: int
    least: int
    channels: int
    out_channels: int

    def __str__(self) -> str:
        return f"p{self.pixels}of{self.least}ic{self.channels}oc{self.out_channels}"


SHAPES = (
    Shape(1, 1, 2, 1),
    Shape(2, 1, 6, 16),
    Shape(7, 7, 64, 70),
    Shape(16, 16, 32, 64),
    Shape(17, 16, 96, 48),
    Shape(32, 17, 24, 130),
    Shape(25, 24, 144, 64),
)


class _Code:
    """A product by all panels and the draining of its sums, called as a part calls them."""

    def __init__(self, made: TileProduct, pixels: int) -> None:
        self.made, self.pixels = made, pixels
        module = ir.Module()
        module.triple = ""
        beside = made.emit_beside(module, None)
        width, out = made.dot.vectors * made.isa.lanes, made.stage.out_channels
        self.columns = [min(width, out - first) for first in range(0, out, width)]
        code = Code(module, "run", [POINTER] * 6)
        rows, weights, bias, y, residual, shadow = code.arguments
        state = made.unit.enter(code, made.shapes())
        set_field(code, shadow, "rows", 0)
        set_field(code, shadow, "free", code.at(shadow, SHADOW_BYTES, ir.IntType(8)))
        functions = {n: made.emit(module, pixels, n, beside) for n in dict.fromkeys(self.columns)}
        element = made.dot.element
        for panel, columns in enumerate(self.columns):
            first = panel * width
            arguments = [
                rows,
                code.at(weights, first * made.depth, element),
                code.at(bias, first, ir.FloatType()),
                code.at(y, first, element),
                code.at(residual, first, element),
                shadow,
                state,
            ]
            code.builder.call(functions[columns], arguments)
        code.builder.call(made.emit_drain(module), [shadow, ir.IntType(64)(2 * ROWS)])
        made.unit.leave(code, state)
        code.end()
        code_bytes = machine_code(module, made.isa.target)
        self._run = Function(code_bytes, "run", [ctypes.c_void_p] * 6)

    def __call__(
        self, x: Array, matrix: Array, bias: Array, residual: Array, at_end: bool
    ) -> NDArray[Any]:
        """Returns the product (pixels, output channels) as it is stored."""
        made = self.made
        spread = np.full((self.pixels, made.stride), JUNK)
        spread[:, : made.depth] = x
        last = len(spread.reshape(-1)) - (made.stride - made.depth)
        lanes = made.isa.lanes
        width = made.dot.vectors * lanes
        filled = np.zeros((made.depth, -(-matrix.shape[1] // lanes) * lanes), np.float32)
        filled[:, : matrix.shape[1]] = matrix
        panels = [filled[:, first : first + width] for first in range(0, filled.shape[1], width)]
        biases = np.zeros(filled.shape[1], np.float32)
        biases[: len(bias)] = bias
        packed = np.concatenate([made.dot.pack(np.ascontiguousarray(p), made.isa) for p in panels])
        given = [
            Memory(BF16.stored(spread.reshape(-1)[:last]), at_end),
            Memory(packed, at_end),
            Memory(biases, at_end),
        ]
        y = Memory(BF16.stored(np.full(residual.shape, JUNK)), at_end)
        added = Memory(BF16.stored(residual), at_end)
        shadow = Memory(np.zeros(SHADOW_BYTES + 2 * SUMS_BYTES, np.uint8), at_end)
        self._run(*(memory.at(0) for memory in (*given, y, added, shadow)))
        assert all(memory.unchanged for memory in (*given, added))
        assert y.untouched
        assert shadow.untouched
        left = Shadow.from_buffer_copy(shadow.array.tobytes())
        assert left.rows == 0
        return y.array.copy()


def _product(shape: Shape, isa: Isa, unit: TileUnit, **fields: Any) -> TileProduct:
    dot = AmxBf16()
    depth, width = dot.depth(shape.channels), dot.vectors * isa.lanes
    whole = width if shape.out_channels >= width else 0
    settings: dict[str, Any] = {
        "stride": depth + 32,
        "depth": depth,
        "least": shape.least,
        "panels": (whole, shape.out_channels % width),
        "y_pitch": shape.out_channels,
        "residual": None,
        "streaming": False,
        "overlap": True,
    }
    stage = Matmul(shape.channels, shape.out_channels, "none", "bf16")
    return TileProduct(stage, isa, dot, unit, **{**settings, **fields})


@pytest.mark.parametrize("isa", SOFTWARE, ids=lambda isa: isa.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_exact(shape: Shape, isa: Isa) -> None:
    """With sums drained at once or in the shadow of the next panel's, with a residual or none."""
    rng = np.random.default_rng(0)
    for unit, residual, overlap in product(_units(isa), (False, True), (False, True)):
        residual_of = Residual(shape.out_channels) if residual else None
        made = _product(shape, isa, unit, residual=residual_of, overlap=overlap)
        x, matrix, bias, added = (
            rng.integers(-2, 3, size).astype(np.float32)
            for size in (
                (shape.pixels, made.depth),
                (made.depth, shape.out_channels),
                (shape.out_channels,),
                (shape.pixels, shape.out_channels),
            )
        )
        right = x @ matrix + bias + (added if residual else 0)
        code = _Code(made, shape.pixels)
        for at_end in (False, True):
            found = code(x, matrix, bias, added, at_end)
            assert np.array_equal(BF16.loaded(found), BF16.rounded(right))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_units_and_the_order_of_draining_give_the_same_bits(shape: Shape) -> None:
    answers = set()
    cases = [(isa, unit) for isa in SOFTWARE for unit in _units(isa)]
    for (isa, unit), overlap in product(cases, (False, True)):
        made = _product(shape, isa, unit, overlap=overlap)
        rng = np.random.default_rng(1)
        x, matrix, bias = (
            BF16.rounded(rng.standard_normal(size, dtype=np.float32))
            for size in ((shape.pixels, made.depth), (made.depth, shape.out_channels), (1,))
        )
        bias = np.repeat(bias, shape.out_channels)
        nothing = np.zeros((shape.pixels, shape.out_channels), np.float32)
        answers.add(_Code(made, shape.pixels)(x, matrix, bias, nothing, at_end=True).tobytes())
    assert len(answers) == 1


def test_a_configuration_fits_every_product() -> None:
    for shape in SHAPES:
        made = _product(shape, SOFTWARE[0], UNITS[0])
        shapes = made.shapes()
        assert len(shapes) == TILES
        assert all(0 < s.rows <= ROWS and 0 < s.row_bytes <= ROW_BYTES for s in shapes)
        assert shape.pixels <= 2 * made.rows
        assert made.steps * made.dot.step_channels(made.depth) == made.depth
