"""The roofline's arithmetic, and the roofs measured on whatever machine this is."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import numpy as np
import pytest

from dnnsep import Problem, cost
from dnnsep.codegen.lang.jit import Target, assembly
from dnnsep.host import amx
from dnnsep.host.caches import caches_of, cpu_list
from dnnsep.host.machine import cpus_for
from dnnsep.measure import calibrate, loops, roofmeter
from dnnsep.measure.calibrate import Calibrator
from dnnsep.measure.pinned import PinnedThreads
from dnnsep.measure.roofs import Roof, Roofs
from tests.sweep.samples import small_roofs

SMALL = Problem.parse("ic64oc64ih28kh3ph1")  # 0.4 MiB
LARGE = Problem.parse("mb16ic64oc64ih56kh3ph1")  # 25 MiB


def test_the_smallest_level_that_holds_all_bytes_binds() -> None:
    roofs = small_roofs(1)
    roof = roofs.of(LARGE, "hot")
    assert roof.binds == "vector unit"
    # Of the 9 taps of the 56x56 pixels, 2 of 168 rows and as many columns lie on the padding.
    on_image, counted = (166 / 168) ** 2, cost(LARGE)
    needed = counted.pointwise_macs + on_image * counted.depthwise_macs
    assert roof.gflops == pytest.approx(100 * counted.macs / needed, abs=1e-3)
    thin = Problem.parse("mb64ic64oc4ih56kh3ph1")
    roof = roofs.of(thin, "hot")
    assert roof.binds == "DRAM"
    counted = cost(thin)
    assert roof.intensity == pytest.approx(counted.flops / counted.bytes_fused, abs=1e-3)
    beyond = counted.bytes_fused - (9 << 20)  # L2 and L3 hold 9 MiB of them from the last call
    assert roof.gflops == pytest.approx(10 * counted.flops / beyond, abs=1e-3)
    cold = roofs.of(thin, "cold")
    assert cold.gflops == pytest.approx(10 * counted.intensity_fused, abs=1e-3)
    few = Problem.parse("ic64oc1ih28kh1")
    assert roofs.of(few, "hot").binds == "L2"
    assert roofs.of(few, "cold").binds == "DRAM"
    assert roofs.of(few, "cold").gflops < roofs.of(few, "hot").gflops


def test_bf16_without_instructions_has_the_roof_of_f32() -> None:
    roofs = small_roofs(1)
    bf16 = Problem.parse("mb1ic256oc256ih28kh1_bf16")
    counted = cost(bf16)
    product, depthwise = 2 * counted.pointwise_macs, 2 * counted.depthwise_macs
    at_once = counted.flops / (product / 200 + depthwise / 100)
    assert roofs.of(bf16, "hot").gflops == pytest.approx(at_once, abs=1e-3)
    for widened in ({"f32": 100}, {"f32": 100, "bf16": 50}):
        slow = roofs.model_copy(update={"fma_gflops": widened})
        assert slow.of(bf16, "hot").gflops == 100


def _with_tiles() -> Roofs:
    """Caches so fast that a unit binds, and a tile unit of 1600 GFLOP/s in bf16."""
    roofs = small_roofs(1)
    fast = [level.model_copy(update={"read_gbs": 1e6}) for level in roofs.memory[:-1]]
    memory = [*fast, roofs.memory[-1]]
    return roofs.model_copy(update={"tile_gflops": {"bf16": 1600.0}, "memory": memory})


@pytest.mark.parametrize(("channels", "binds"), [(512, "tile unit"), (64, "vector unit")])
def test_two_units_work_at_the_same_time(channels: int, binds: str) -> None:
    """The depthwise stage of 9 taps takes about as long at 100 GFLOP/s as 144 channels at 1600."""
    roofs = _with_tiles()
    problem = Problem.parse(f"ic64oc{channels}ih28kh3ph1_bf16")
    roof, counted = roofs.of(problem, "hot"), cost(problem)
    on_image = (82 / 84) ** 2
    depthwise = on_image * counted.depthwise_macs / 100
    busy = 2 * (counted.pointwise_macs / 1600 if channels > 144 else depthwise)
    assert roof.binds == binds
    assert roof.gflops == pytest.approx(counted.flops / busy, abs=1e-3)
    cold = roofs.of(problem, "cold")
    assert cold.binds == "DRAM"
    assert cold.gflops == pytest.approx(10 * counted.intensity_fused, abs=1e-3)


def test_a_tile_unit_does_nothing_for_f32() -> None:
    with_tiles = _with_tiles().of(LARGE, "hot")
    assert with_tiles.binds == "vector unit"
    assert with_tiles.gflops == small_roofs(1).of(LARGE, "hot").gflops


@pytest.mark.parametrize(
    ("binds", "rate", "word", "is_doubt"),
    [
        ("L2", 100.0, None, False),
        ("L2", 100.1, "at roof", False),
        ("vector unit", 104.9, "at roof", False),
        ("vector unit", 106.0, "roof low", True),
        ("FMA", 106.0, "roof low", True),
        ("tile unit", 300.0, "roof low", True),
        ("L2", 106.0, "in cache", True),
        ("DRAM", 300.0, "in cache", True),
    ],
)
def test_no_share_is_above_one(binds: str, rate: float, word: str | None, is_doubt: bool) -> None:
    roof = Roof(gflops=100, binds=binds, intensity=1)
    why = roof.why_no_share(rate)
    assert roof.share(rate) == (1.0 if word is None else None)
    if word is None:
        assert why is None
        assert roof.judging(rate).no_share is None
        return
    assert why is not None
    assert (why.word, why.is_doubt) == (word, is_doubt)
    assert why.reason.startswith(f"{rate / 100:.{3 if rate < 105 else 2}f} times")
    assert binds in why.reason
    assert f'"no_share":"{why.reason}"' in roof.judging(rate).model_dump_json()


def test_a_roof_allows_for_bytes_that_a_cache_kept() -> None:
    """A little more than L2 holds is bound by L2, not by L3 as if nothing had stayed in L2."""
    roofs = small_roofs(1)
    problem = Problem.parse("mb1ic64oc1ih64kh1")  # 1.07 MB
    counted = cost(problem)
    assert counted.bytes_fused > 1 << 20
    roof = roofs.of(problem, "hot")
    assert roof.binds == "L2"
    assert roof.gflops == pytest.approx(100 * counted.intensity_fused, abs=1e-3)


def test_roofs_without_a_tile_unit_are_read() -> None:
    older = small_roofs(1).model_dump(exclude={"tile_gflops"})
    assert Roofs.model_validate(older) == small_roofs(1)
    units = [(unit, dtype) for unit, dtype, _, _ in _with_tiles().units]
    assert units == [("vector unit", "f32"), ("vector unit", "bf16"), ("tile unit", "bf16")]
    assert _with_tiles().units[-1].flops_per_cycle == pytest.approx(1600 / 3)


def test_measured_roofs_make_sense() -> None:
    start = monotonic()
    with Calibrator(cpus_for(1)) as calibrator:
        roofs = calibrator.roofs()
        assert monotonic() - start < 10  # five on a quiet machine
        control = calibrator.control()
    assert 0.5 < roofs.clock_ghz < 8
    # Two units of this CPU's widest vectors at most, and half a unit at least.
    widest = 2 * 2 * loops.vector_lanes()
    assert widest / 4 < roofs.fma_flops_per_cycle["f32"] < 1.1 * widest
    assert roofs.fma_gflops["f32"] == pytest.approx(
        roofs.fma_flops_per_cycle["f32"] * roofs.clock_ghz, rel=0.02
    )
    assert [level.name for level in roofs.memory][-1] == "DRAM"
    bandwidths = [level.gbs for level in roofs.memory]
    assert bandwidths[0] >= bandwidths[-1] > 1
    assert control.busy_us > 0
    assert control.loads_us > 0
    assert control.handover_ns is None


class _Stalls:
    """Two threads whose steps take a microsecond each; their first slice waits for a CPU."""

    def __init__(self) -> None:
        self.stall = 1e9

    def together(self, run: Callable[[int], None]) -> list[float]:
        self.steps = 0
        run(0)
        stall, self.stall = self.stall, 0.0
        # Starting the loop takes 50 µs more on each thread.
        return [self.steps * 1e3 + 50_000 + stall] * 2


def test_a_stall_does_not_make_slices_short() -> None:
    threads = _Stalls()

    def run(thread: int, steps: int) -> None:
        threads.steps = steps

    meter = roofmeter._Meter(threads, run, amount=1000)  # type: ignore[arg-type]
    meter.measure()
    assert 1.95 < meter.best <= 2


def test_the_tile_unit_is_measured_beside_the_vector_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, seen = loops.multiply_chain(), []

    def tile_loop(dtype: str) -> Callable[[int, int, int], None]:
        def run(steps: int, configuration: int, operand: int) -> None:
            seen.append((configuration, operand))
            chain(steps)

        return run

    monkeypatch.setattr(loops, "tile_dtypes", lambda: ["bf16", "int8"])
    monkeypatch.setattr(loops, "tile_loop", tile_loop)
    monkeypatch.setattr(roofmeter, "_memory_levels", lambda threads: [])
    monkeypatch.setattr(roofmeter, "_SECONDS", 0)
    monkeypatch.setattr(roofmeter, "_FEWEST_PASSES", 1)
    with Calibrator(cpus_for(1)) as calibrator:
        roofs = calibrator.roofs()
    assert list(roofs.fma_gflops) == loops.multiply_add_dtypes()
    assert list(roofs.tile_gflops) == ["bf16", "int8"]
    a_cycle = roofs.tile_gflops["bf16"] / roofs.clock_ghz
    cycles_per_step = loops.MULTIPLIES_PER_STEP * loops.MULTIPLY_LATENCY
    assert a_cycle == pytest.approx(4 * 2 * 16 * 16 * 32 / cycles_per_step, rel=0.2)
    assert all(address % 64 == 0 for addresses in seen for address in addresses)


def test_the_tile_configuration_is_eight_whole_tiles() -> None:
    """As in the program that was run on a CPU with AMX: 16 rows of 64 bytes, palette 1."""
    fields = np.dtype(
        {
            "names": ["palette", "row_bytes", "rows"],
            "formats": ["u1", "8<u2", "8u1"],
            "offsets": [0, 16, 48],
            "itemsize": 64,
        }
    )
    (found,) = roofmeter.tile_configuration().view(fields)
    assert found["palette"] == 1
    assert list(found["row_bytes"]) == [64] * 8
    assert list(found["rows"]) == [16] * 8
    assert roofmeter.tile_configuration().sum() == 1 + 8 * 64 + 8 * 16  # nothing else


@pytest.mark.parametrize(
    ("features", "refusal", "dtypes"),
    [
        ("amx-tile amx-bf16 amx-int8", "", ["bf16", "int8"]),
        ("amx-tile amx-int8", "", ["int8"]),
        ("amx-tile amx-bf16 amx-int8", "the system refuses AMX", []),
        ("amx-bf16", "", []),
        ("", "", []),
    ],
)
def test_tiles_are_measured_where_cpu_and_system_allow(
    monkeypatch: pytest.MonkeyPatch, features: str, refusal: str, dtypes: list[str]
) -> None:
    monkeypatch.setattr(loops, "cpu_features", lambda: dict.fromkeys(features.split(), True))
    monkeypatch.setattr(amx, "refusal", lambda: refusal)
    assert loops.tile_dtypes() == dtypes


def test_tiles_are_asked_for_before_threads_start(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def threads(cpus: list[int]) -> PinnedThreads:
        order.append("threads")
        return PinnedThreads(cpus)

    monkeypatch.setattr(amx, "refusal", lambda: order.append("asked"))
    monkeypatch.setattr(calibrate, "PinnedThreads", threads)
    Calibrator(cpus_for(1)).close()
    assert order == ["asked", "threads"]


def test_handing_over_between_cores_is_measured() -> None:
    cpus = cpus_for(2)
    with Calibrator(cpus) as calibrator:
        handover = calibrator.control().handover_ns
    assert (handover is None) == (len(set(cpus)) < 2)
    assert handover is None or 1 < handover < 10_000


@pytest.mark.parametrize("dtype", loops.multiply_add_dtypes())
def test_the_loops_run_the_instruction_they_name(dtype: str) -> None:
    assembly = loops.multiply_add_loop(dtype).assembly
    instruction = {"f32": "vfmadd231ps", "bf16": "vdpbf16ps", "int8": "vpdpbusd"}[dtype]
    lines = [line for line in assembly.splitlines() if line.strip().startswith(instruction)]
    assert len(lines) == loops.SUMS * loops.FMA_UNROLL
    assert "rsp" not in "".join(lines)  # nothing spilled


@pytest.mark.parametrize(
    ("dtype", "product", "operations"),
    [("bf16", "tdpbf16ps", 2 * 16 * 16 * 32), ("int8", "tdpbssd", 2 * 16 * 16 * 64)],
)
def test_the_tile_loop_is_products_in_tile_registers(
    dtype: str, product: str, operations: int
) -> None:
    """LLVM makes it of the instructions that it names; whether they run takes a CPU with AMX."""
    target = Target("x86-64-v4", "+amx-tile,+amx-bf16,+amx-int8")
    lines = [line.split() for line in assembly(loops.tile_module(dtype), target).splitlines()]
    names = [line[0] for line in lines if line]
    start = next(i for i, line in enumerate(lines) if line and line[0].startswith(".LBB"))
    end = next(i for i, line in enumerate(lines) if line and line[0] == "jl")
    outside = [line[0] for line in (*lines[:start], *lines[end:]) if line]
    in_loop = [line[0] for line in lines[start + 1 : end]]
    assert in_loop == [product] * 4 + ["incq", "cmpq"]
    assert [name for name in outside if "tile" in name] == [
        *["ldtilecfg", *["tilezero"] * 4, *["tileloadd"] * 4, "tilerelease"]
    ]
    assert names.count(product) == 4
    sums = [line[-1] for line in lines if line and line[0] == product]
    assert sums == ["%tmm0", "%tmm1", "%tmm2", "%tmm3"]
    assert loops.tile_operations_per_step(dtype) == 4 * operations


def test_the_tile_loop_runs_where_there_are_tiles() -> None:
    """Half the fastest rate, a product every 16 cycles, and the whole of it with some room."""
    with Calibrator(cpus_for(1)) as calibrator:
        roofs = calibrator.roofs()
    assert set(roofs.tile_gflops) == set(loops.tile_dtypes())
    peak = {"bf16": 1024, "int8": 2048}
    for unit, dtype, _, a_cycle in roofs.units:
        if unit == "tile unit":
            assert peak[dtype] / 2 < a_cycle < 1.1 * peak[dtype]


def test_streaming_stores_pass_the_caches() -> None:
    assert "vmovnt" in loops.copy_loop(streaming=True).assembly
    assert "vmovnt" not in loops.copy_loop(streaming=False).assembly


def test_cpus_and_caches() -> None:
    assert cpu_list("0-2,8,10-11\n") == {0, 1, 2, 8, 10, 11}
    assert len(cpus_for(3)) == 3
    sizes = list(caches_of(cpus_for(1)).values())
    assert sizes == sorted(sizes)
