"""The ceilings of a machine, and which of them a problem meets first (the roofline model).

Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009: attainable FLOP/s = min(FMA roof,
arithmetic intensity · bandwidth). Here a CPU with AMX has two units that compute at the same time.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from dnnsep.cost import Cost, cost
from dnnsep.problem import Problem

VECTOR_UNIT, TILE_UNIT = "vector unit", "tile unit"

# A rate up to so many times the roof is noise of either; beyond it the roof cannot be right.
_TOLERANCE = 1.05


class Roof(BaseModel):
    """The ceiling of one problem.

    ``gflops`` is the rate that can be attained in GFLOP/s, and ``binds`` what limits it:
    ``vector unit`` (``FMA`` in older results), ``tile unit``, or the memory level whose bandwidth
    does (``L2``, ``L3``, ``DRAM``). ``intensity`` is in FLOPs per byte.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gflops: float
    binds: str
    intensity: float

    def share(self, gflops: float) -> float | None:
        """Returns what share of the roof a rate is, 0 to 1.

        Returns None where it is over 5 % beyond the roof, as when the roof was measured in a busy
        moment.
        """
        share = gflops / self.gflops
        return share if share <= _TOLERANCE else None


class UnitRate(NamedTuple):
    """The rate of a unit in a dtype: of all threads in GFLOP/s (int8: GOP/s), and of one core in
    FLOPs a cycle."""

    unit: str
    dtype: str
    gflops: float
    flops_per_cycle: float


class MemoryLevel(BaseModel):
    """A level of the memory and the bandwidths measured from it in GB/s.

    ``capacity_bytes`` is what the level holds for these threads together, None for DRAM.
    ``copy_gbs`` counts bytes read and bytes written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    capacity_bytes: int | None
    read_gbs: float
    copy_gbs: float

    @property
    def gbs(self) -> float:
        """Returns the higher bandwidth: no mix of reads and writes was seen to exceed it."""
        return max(self.read_gbs, self.copy_gbs)


class Roofs(BaseModel):
    """Roofs measured on this machine with ``threads`` threads.

    ``fma_gflops`` maps f32, bf16 and int8 to the GFLOP/s (int8: GOP/s) of the vector unit, all
    threads together, without those dtypes that the CPU has no instruction for.
    ``fma_flops_per_cycle`` is the rate of one core in FLOPs a cycle, at the ``clock_ghz`` measured
    beside it. ``tile_gflops`` maps bf16 and int8 to the rate of the tile unit (AMX); it is empty
    where there is none, or the system refuses it. ``memory`` goes from the innermost level
    outwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int
    clock_ghz: float
    fma_gflops: dict[str, float]
    fma_flops_per_cycle: dict[str, float]
    tile_gflops: dict[str, float] = Field(default_factory=dict)
    memory: list[MemoryLevel]

    @property
    def units(self) -> list[UnitRate]:
        """Returns the rates of the vector unit, then those of the tile unit if there is one."""
        cycles = self.threads * self.clock_ghz
        return [
            *(
                UnitRate(VECTOR_UNIT, dtype, rate, self.fma_flops_per_cycle[dtype])
                for dtype, rate in self.fma_gflops.items()
            ),
            *(
                UnitRate(TILE_UNIT, dtype, rate, rate / cycles)
                for dtype, rate in self.tile_gflops.items()
            ),
        ]

    def of(self, problem: Problem, cache: str) -> Roof:
        """Returns a problem's roof with its tensors in the caches (``hot``) or not (``cold``).

        It is the rate of a pass that computes both stages and keeps what binds busy all the time:
        FLOPs / max(time of each unit, bytes / bandwidth), since units and memory work at the same
        time. With P and D the FLOPs of the product over channels and of the depthwise stage:

        - with a tile unit for the dtype: tile unit P / tile_gflops[dtype], vector unit D / f32;
        - without one the two share the vector unit: P / max(f32, dtype) + D / f32.

        f32 and dtype are those of ``fma_gflops``: a depthwise stage in bf16 is computed as f32, and
        a product may be as well, where that is faster or there is no instruction. Bytes are counted
        once for input, weights and output (cost.bytes_fused): the least any engine moves. With hot
        caches they come from the smallest level that holds them all. An engine that runs the stages
        one after the other is measured by the same roof.
        """
        counted = cost(problem)
        level = self._level(counted.bytes_fused) if cache == "hot" else self.memory[-1]
        times_ns = self._unit_times_ns(counted, problem.dtype)
        times_ns[level.name] = counted.bytes_fused / level.gbs
        binds = max(times_ns, key=lambda name: times_ns[name])
        return Roof(
            gflops=round(counted.flops / times_ns[binds], 3),
            binds=binds,
            intensity=round(counted.intensity_fused, 3),
        )

    def _unit_times_ns(self, counted: Cost, dtype: str) -> dict[str, float]:
        """Returns how long each unit takes at least, in nanoseconds."""
        f32 = self.fma_gflops["f32"]
        product, depthwise = 2 * counted.pointwise_macs, 2 * counted.depthwise_macs
        if dtype in self.tile_gflops:
            return {TILE_UNIT: product / self.tile_gflops[dtype], VECTOR_UNIT: depthwise / f32}
        fastest = max(f32, self.fma_gflops.get(dtype, 0))
        return {VECTOR_UNIT: product / fastest + depthwise / f32}

    def _level(self, size: int) -> MemoryLevel:
        """Returns the innermost level that holds so many bytes."""
        return next(
            level
            for level in self.memory
            if level.capacity_bytes is None or size <= level.capacity_bytes
        )
