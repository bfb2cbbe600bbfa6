"""The vector instructions that kernels are generated for."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from dnnsep.codegen.lang.jit import Target, cpu_features, this_cpu
from dnnsep.host import amx

# Caps what is used, for tests and comparisons: avx2, avx2_vnni (products of bytes on vectors of 256
# bits), avx512 (neither those nor bf16), avx512_vnni, avx512_bf16 (no tiles).
CAP_VARIABLE = "DNNSEP_MAX_ISA"
# With "software" kernels multiply bf16 by a tile unit in software, on any CPU: to test them.
TILES_VARIABLE = "DNNSEP_TILE_UNIT"

_ORDER = ("avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx")
# Features, by LLVM's names: tiles, those of bytes, and products of bytes on vectors.
TILES, BYTE_TILES = "amx-bf16", "amx-int8"
VNNI, VEX_VNNI = "avx512vnni", "avxvnni"


@dataclass(frozen=True)
class Isa:
    """Vectors of ``lanes`` f32, ``registers`` of them. ``features`` are the instructions beyond the
    plain ones of such vectors, by LLVM's names, that kernels may use; those of a tile unit are made
    of plain ones where ``software_tiles`` says so."""

    name: str
    lanes: int
    registers: int
    features: tuple[str, ...]
    target: Target
    software_tiles: bool = False

    def has(self, feature: str) -> bool:
        return feature in self.features


def this_isa() -> Isa:
    """Returns the best that this CPU has and the cap allows, with the tile unit asked for.

    Raises RuntimeError below AVX2 with FMA, ValueError for a cap or a tile unit that is not known.
    """
    cap = os.environ.get(CAP_VARIABLE) or _ORDER[-1]
    if cap not in _ORDER:
        raise ValueError(f"{CAP_VARIABLE}={cap!r}: must be one of {', '.join(_ORDER)}")
    unit = os.environ.get(TILES_VARIABLE) or "cpu"
    if unit not in ("cpu", "software"):
        raise ValueError(f"{TILES_VARIABLE}={unit!r}: must be cpu or software")
    isa = _best(_ORDER[: _ORDER.index(cap) + 1])
    if unit == "cpu":
        return isa
    features = tuple(dict.fromkeys((*isa.features, TILES, BYTE_TILES)))
    name = f"{isa.name.removesuffix('_amx')}_software_amx"
    return replace(isa, name=name, features=features, software_tiles=True)


def why_no_tiles() -> str:
    """Returns why kernels do not use the tiles of this CPU; nothing where it has none, or where
    they do."""
    return amx.refusal() if cpu_features().get(TILES) else ""


def _best(allowed: tuple[str, ...]) -> Isa:
    has = cpu_features()
    if "avx512" in allowed and all(has.get(f"avx512{part}") for part in ("f", "bw", "dq", "vl")):
        # Some CPUs' settings in LLVM split 512-bit vectors in two.
        target = Target(this_cpu().cpu, this_cpu().features + ",-prefer-256-bit")
        if "avx512_vnni" not in allowed or not has.get(VNNI):
            return Isa("avx512", 16, 32, (), target)
        if "avx512_bf16" not in allowed or not has.get("avx512bf16"):
            return Isa("avx512_vnni", 16, 32, (VNNI,), target)
        if "avx512_amx" in allowed and has.get(TILES) and not amx.refusal():
            tiles = tuple(name for name in (TILES, BYTE_TILES) if has.get(name))
            return Isa("avx512_amx", 16, 32, ("avx512bf16", VNNI, *tiles), target)
        return Isa("avx512_bf16", 16, 32, ("avx512bf16", VNNI), target)
    if has.get("avx2") and has.get("fma"):
        if "avx2_vnni" in allowed and has.get(VEX_VNNI):
            return Isa("avx2_vnni", 8, 16, (VEX_VNNI,), Target("x86-64-v3", f"+{VEX_VNNI}"))
        return Isa("avx2", 8, 16, (), Target("x86-64-v3", ""))
    raise RuntimeError("this CPU has neither AVX-512 nor AVX2 with FMA")
