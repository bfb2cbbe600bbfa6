"""Compiled kernels: made once for a process, and kept on disk for the next one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from llvmlite import ir

from dnnsep.codegen.extent import Extent
from dnnsep.codegen.extras import PLAIN, Extras
from dnnsep.codegen.fuse import emit_kernel
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.layer import Layer, layer_of
from dnnsep.codegen.plan import Plan, tile_bytes
from dnnsep.codegen.task import KERNEL
from dnnsep.codegen.tiled import SHADOW_ROOM
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles
from dnnsep.problem import Problem

# Between the tiles of two threads: what the hardware fetches ahead of one must not be the other's,
# which would take its lines away while it writes them. 4 KiB was not enough on a Zen 5.
GAP_BYTES = 64 * 1024
_PAGE = 4096


@dataclass(frozen=True)
class Specialization:
    """All that decides a kernel's code: a layer, the sizes built into it, and a plan, of which the
    size of a tile is read from the task. A pixel of an output with a pitch need not begin at a
    line, which streaming stores need."""

    layer: Layer
    extent: Extent
    plan: Plan
    extras: Extras

    @classmethod
    def of(cls, problem: Problem, plan: Plan, extras: Extras = PLAIN) -> Specialization:
        """Returns that of a problem cut up by a plan.

        Raises ValueError for a linear layer with a scale: its rows are pixels of one image.
        """
        if extras.scale and problem.kind == "linear":
            raise ValueError("scale: a linear layer takes none")
        layer = layer_of(problem, plan.isa)
        streaming = plan.streaming and not extras.y_pitch
        return cls(layer, Extent.of(problem), replace(plan.untiled, streaming=streaming), extras)

    def module(self) -> ir.Module:
        """Returns the kernel's code."""
        return emit_kernel(self.layer, self.extent, self.plan, self.extras)


@dataclass(frozen=True)
class Room:
    """Bytes of scratch memory: of a tile, and of each part."""

    tile: int
    part: int

    @classmethod
    def of(cls, problem: Problem, plan: Plan, extras: Extras = PLAIN) -> Room:
        """Returns what a plan needs."""
        layer = layer_of(problem, plan.isa)
        used = layer.gathered() if plan.gathers or extras.scale else layer
        tile = -(-tile_bytes(problem, used, plan) // _PAGE) * _PAGE
        beside = SHADOW_ROOM if used.product is not None and used.dot.in_tiles else 0
        return cls(tile, (1 + plan.overlap) * tile + -(-beside // _PAGE) * _PAGE + GAP_BYTES)


# So many stay for the next executor; one that is in use stays with its executor.
@lru_cache(256)
def compiled(special: Specialization) -> Function:
    """Returns the kernel, from the disk where it is there."""
    code = _adopted.pop(special, None)
    return Function(code_of(special) if code is None else code, "run", KERNEL)


def code_of(special: Specialization) -> bytes:
    """Returns the kernel's machine code, from the disk where it is there."""
    key = f"{generator()} {special}"
    code = cachefiles.load("kernels", key)
    if code is None:
        code = machine_code(special.module(), special.plan.isa.target)
        cachefiles.save("kernels", key, code)
    return code


# Machine code that another process made, for ``compiled`` to take.
_adopted: dict[Specialization, bytes] = {}


def adopt(special: Specialization, code: bytes) -> None:
    """Has ``compiled`` take a kernel's machine code that another process made."""
    _adopted[special] = code
