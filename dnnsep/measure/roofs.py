"""The ceilings of a machine, and which of them a problem meets first (the roofline model).

Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009: attainable FLOP/s = min(FMA roof,
arithmetic intensity · bandwidth). Here a CPU with AMX has two units that compute at the same time.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from dnnsep.block import Block
from dnnsep.cost import cost
from dnnsep.dtypes import PRECISIONS
from dnnsep.measure.least import Least, least_of
from dnnsep.problem import Problem

VECTOR_UNIT, TILE_UNIT = "vector unit", "tile unit"
_UNITS = (VECTOR_UNIT, TILE_UNIT, "FMA")

# A rate up to so many times the roof is at the roof, as closely as either is measured.
_TOLERANCE = 1.05


class NoShare(NamedTuple):
    """Why a rate is no share of a roof: in two words, as a column has room for, and in a sentence;
    ``is_doubt`` says whether it makes the roof doubtful."""

    word: str
    reason: str
    is_doubt: bool


class Roof(BaseModel):
    """The ceiling of one problem or block.

    ``gflops`` is the rate that can be attained in GFLOP/s, and ``binds`` what limits it:
    ``vector unit`` (``FMA`` in older results), ``tile unit``, or the memory level whose bandwidth
    does (``L2``, ``L3``, ``DRAM``). ``intensity`` is in FLOPs per byte. ``no_share`` says why a
    record's rate is no share of it; it is None where it is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gflops: float
    binds: str
    intensity: float
    no_share: str | None = None

    def share(self, gflops: float) -> float | None:
        """Returns what share of the roof a rate is, 0 to 1; None where it is beyond the roof."""
        share = gflops / self.gflops
        return share if share <= 1 else None

    def why_no_share(self, gflops: float) -> NoShare | None:
        """Returns why a rate that is beyond the roof is no share of it; None where it is one."""
        times = gflops / self.gflops
        if times <= 1:
            return None
        if times <= _TOLERANCE:
            reason = (
                f"{times:.3f} times the roof: at the {self.binds}'s limit, as closely as the two "
                "are measured"
            )
            return NoShare("at roof", reason, is_doubt=False)
        if self.binds in _UNITS:
            reason = (
                f"{times:.2f} times what the {self.binds} was measured to allow, so no share is "
                "shown: the roofs were probably measured in a busy moment; sweep again when the "
                "machine is quiet"
            )
            return NoShare("roof low", reason, is_doubt=True)
        reason = (
            f"{times:.2f} times what the bandwidth of {self.binds} allows, so no share is shown: "
            "data came from a cache that the model does not count on, or the roofs were measured "
            "in a busy moment"
        )
        return NoShare("in cache", reason, is_doubt=True)

    def judging(self, gflops: float) -> Roof:
        """Returns this roof with the reason why a rate is no share of it, if it is none."""
        why = self.why_no_share(gflops)
        return self.model_copy(update={"no_share": why.reason if why else None})


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
        FLOPs / max(time of each unit, time of each level), since units and memory work at the same
        time. The FLOPs are those of the formula (cost.flops), the times those of the least that any
        engine must do (measure/least.py): it may leave out taps on the padding, and pixels that a
        stride passes over. With P and D the FLOPs of the product over channels and of the depthwise
        stage:

        - with a tile unit for the dtype: tile unit P / tile_gflops[dtype], vector unit D / f32;
        - without one the two share the vector unit: P / max(f32, dtype) + D / f32.

        f32 and dtype are those of ``fma_gflops``: a depthwise stage in bf16 is computed as f32, and
        a product may be as well, where that is faster or there is no instruction. Of a quantised
        problem dtype is int8, for both stages. Input, weights
        and output are moved once. With hot caches a level moves what the caches inside of it do not
        hold, with cold ones DRAM moves it all. An engine that runs the stages one after the other
        is measured by the same roof.
        """
        counted, least = cost(problem), least_of(problem)
        times_ns = self._unit_times_ns(least, problem.dtype)
        times_ns |= self._memory_times_ns(least.moved_bytes, cache)
        binds = max(times_ns, key=lambda name: times_ns[name])
        return Roof(
            gflops=round(counted.flops / times_ns[binds], 3),
            binds=binds,
            intensity=round(counted.intensity_fused, 3),
        )

    def of_block(self, block: Block, cache: str) -> Roof:
        """Returns a block's roof with its tensors in the caches (``hot``) or not (``cold``).

        As a problem's, with each unit's times of all layers added up, and the input, the output and
        all weights moved once. Normalisations, means and scales count as nothing.
        """
        layers = [layer for layer in block.layers if layer.kind != "mean"]
        times_ns: dict[str, float] = {}
        for layer in layers:
            for unit, time in self._unit_times_ns(least_of(layer), layer.dtype).items():
                times_ns[unit] = times_ns.get(unit, 0.0) + time
        times_ns |= self._memory_times_ns(block.bytes_fused, cache)
        binds = max(times_ns, key=lambda name: times_ns[name])
        return Roof(
            gflops=round(block.flops / times_ns[binds], 3),
            binds=binds,
            intensity=round(block.flops / block.bytes_fused, 3),
        )

    def _unit_times_ns(self, least: Least, dtype: str) -> dict[str, float]:
        """Returns how long each unit takes at least, in nanoseconds."""
        f32 = depthwise_rate = self.fma_gflops["f32"]
        if PRECISIONS[dtype].quantized:
            dtype = "int8"
            depthwise_rate = max(f32, self.fma_gflops.get(dtype, 0))
        product, depthwise = least.product_flops, least.depthwise_flops
        if dtype in self.tile_gflops:
            return {
                TILE_UNIT: product / self.tile_gflops[dtype],
                VECTOR_UNIT: depthwise / depthwise_rate,
            }
        fastest = max(f32, self.fma_gflops.get(dtype, 0))
        return {VECTOR_UNIT: product / fastest + depthwise / depthwise_rate}

    def _memory_times_ns(self, moved: float, cache: str) -> dict[str, float]:
        """Returns how long each level takes at least to move these bytes, in nanoseconds.

        A call finds in a cache what fits into it of what the last call moved, and caches may hold
        different bytes, so that their capacities add up.
        """
        if cache == "cold":
            return {self.memory[-1].name: moved / self.memory[-1].gbs}
        times_ns, held = {}, 0
        for level in self.memory:
            times_ns[level.name] = max(0.0, moved - held) / level.gbs
            held += level.capacity_bytes or 0
        return times_ns
