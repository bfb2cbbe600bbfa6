"""The ceilings of a machine, and which of them a problem meets first (the roofline model).

Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009: attainable FLOP/s = min(FMA roof,
arithmetic intensity · bandwidth).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from dnnsep.cost import cost
from dnnsep.problem import Problem


class Roof(BaseModel):
    """The ceiling of one problem.

    ``gflops`` is the rate that can be attained in GFLOP/s, and ``binds`` what limits it: ``FMA``,
    or the memory level whose bandwidth does (``L2``, ``L3``, ``DRAM``). ``intensity`` is in FLOPs
    per byte.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gflops: float
    binds: str
    intensity: float


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

    ``fma_gflops`` maps f32, bf16 and int8 to GFLOP/s (int8: GOP/s) of all threads together,
    without those dtypes that the CPU has no instruction for. ``fma_flops_per_cycle`` is the rate of
    one core in FLOPs a cycle, at the ``clock_ghz`` measured beside it. ``memory`` goes from the
    innermost level outwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int
    clock_ghz: float
    fma_gflops: dict[str, float]
    fma_flops_per_cycle: dict[str, float]
    memory: list[MemoryLevel]

    def of(self, problem: Problem, cache: str) -> Roof:
        """Returns a problem's roof with its tensors in the caches (``hot``) or not (``cold``).

        Bytes are counted once for input, weights and output (cost.bytes_fused): the least any
        engine moves. With hot caches they come from the smallest level that holds them all.
        """
        counted = cost(problem)
        level = self._level(counted.bytes_fused) if cache == "hot" else self.memory[-1]
        # Without bf16 instructions an engine widens to f32.
        fma = self.fma_gflops.get(problem.dtype, self.fma_gflops["f32"])
        intensity = counted.intensity_fused
        by_memory = intensity * level.gbs
        binds = "FMA" if fma <= by_memory else level.name
        return Roof(
            gflops=round(min(fma, by_memory), 3), binds=binds, intensity=round(intensity, 3)
        )

    def _level(self, size: int) -> MemoryLevel:
        """Returns the innermost level that holds so many bytes."""
        return next(
            level
            for level in self.memory
            if level.capacity_bytes is None or size <= level.capacity_bytes
        )
