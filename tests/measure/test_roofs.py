"""The roofline's arithmetic, and the roofs measured on whatever machine this is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dnnsep import Problem, cost
from dnnsep.host.caches import caches_of, cpu_list
from dnnsep.host.machine import cpus_for
from dnnsep.measure import loops, roofmeter
from dnnsep.measure.calibrate import Calibrator
from tests.sweep.samples import small_roofs

SMALL = Problem.parse("ic64oc64ih28kh3ph1")  # 0.4 MiB
LARGE = Problem.parse("mb16ic64oc64ih56kh3ph1")  # 25 MiB


def test_the_smallest_level_that_holds_all_bytes_binds() -> None:
    roofs = small_roofs(1)
    roof = roofs.of(LARGE, "hot")
    assert roof.binds == "FMA"
    assert roof.gflops == 100
    thin = Problem.parse("mb16ic64oc4ih56kh3ph1")
    roof = roofs.of(thin, "hot")
    assert roof.binds == "DRAM"
    counted = cost(thin)
    assert roof.intensity == pytest.approx(counted.flops / counted.bytes_fused, abs=1e-3)
    assert roof.gflops == pytest.approx(10 * counted.intensity_fused, abs=1e-3)
    few = Problem.parse("ic64oc1ih28kh1")
    assert roofs.of(few, "hot").binds == "L2"
    assert roofs.of(few, "cold").binds == "DRAM"
    assert roofs.of(few, "cold").gflops < roofs.of(few, "hot").gflops


def test_bf16_without_instructions_has_the_roof_of_f32() -> None:
    roofs = small_roofs(1)
    bf16 = Problem.parse("mb1ic256oc256ih28kh3ph1_bf16")
    assert roofs.of(bf16, "hot").gflops == 200
    widened = roofs.model_copy(update={"fma_gflops": {"f32": 100}})
    assert widened.of(bf16, "hot").gflops == 100


def test_measured_roofs_make_sense() -> None:
    with Calibrator(cpus_for(1)) as calibrator:
        roofs = calibrator.roofs()
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


def test_streaming_stores_pass_the_caches() -> None:
    assert "vmovnt" in loops.copy_loop(streaming=True).assembly
    assert "vmovnt" not in loops.copy_loop(streaming=False).assembly


def test_cpus_and_caches() -> None:
    assert cpu_list("0-2,8,10-11\n") == {0, 1, 2, 8, 10, 11}
    assert len(cpus_for(3)) == 3
    sizes = list(caches_of(cpus_for(1)).values())
    assert sizes == sorted(sizes)
