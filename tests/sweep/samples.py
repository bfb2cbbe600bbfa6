"""Made-up measurements for the tests."""

from __future__ import annotations

from collections.abc import Sequence

from dnnsep.measure.roofs import MemoryLevel, Roofs
from dnnsep.measure.stats import Control, Round

QUIET = Control(busy_us=400, loads_us=500, handover_ns=25)


def rounds_of(
    calls: Sequence[Sequence[float]], visit: int = 0, control: Control = QUIET
) -> list[Round]:
    return [Round(visit=visit, before=control, after=control, calls_us=list(c)) for c in calls]


def small_roofs(threads: int) -> Roofs:
    """100 GFLOP/s f32, 200 bf16; 1 MiB of L2 at 100 GB/s, 8 MiB of L3 at 50, DRAM at 10."""
    memory = [
        MemoryLevel(name="L2", capacity_bytes=1 << 20, read_gbs=100, copy_gbs=90),
        MemoryLevel(name="L3", capacity_bytes=8 << 20, read_gbs=50, copy_gbs=45),
        MemoryLevel(name="DRAM", capacity_bytes=None, read_gbs=8, copy_gbs=10),
    ]
    return Roofs(
        threads=threads,
        clock_ghz=3,
        fma_gflops={"f32": 100, "bf16": 200},
        fma_flops_per_cycle={"f32": 32, "bf16": 64},
        memory=memory,
    )
