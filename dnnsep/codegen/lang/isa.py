"""The vector instructions that kernels are generated for."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dnnsep.codegen.lang.jit import Target, cpu_features, this_cpu

# Caps what is used, for tests and comparisons: avx2, avx512 (no bf16 instructions).
CAP_VARIABLE = "DNNSEP_MAX_ISA"


@dataclass(frozen=True)
class Isa:
    """Vectors of ``lanes`` f32, ``registers`` of them. ``features`` are the instructions beyond the
    plain ones of such vectors, by LLVM's names, that kernels may use."""

    name: str
    lanes: int
    registers: int
    features: tuple[str, ...]
    target: Target

    def has(self, feature: str) -> bool:
        return feature in self.features


def this_isa() -> Isa:
    """Returns the best that this CPU has and the cap allows.

    Raises RuntimeError below AVX2 with FMA, ValueError for a cap that is not known.
    """
    order = ("avx2", "avx512", "avx512_bf16")
    cap = os.environ.get(CAP_VARIABLE) or order[-1]
    if cap not in order:
        raise ValueError(f"{CAP_VARIABLE}={cap!r}: must be one of {', '.join(order)}")
    has = cpu_features()
    allowed = order[: order.index(cap) + 1]
    if "avx512" in allowed and all(has.get(f"avx512{part}") for part in ("f", "bw", "dq", "vl")):
        bf16 = "avx512_bf16" in allowed and bool(has.get("avx512bf16"))
        # Some CPUs' settings in LLVM split 512-bit vectors in two.
        target = Target(this_cpu().cpu, this_cpu().features + ",-prefer-256-bit")
        name, features = ("avx512_bf16", ("avx512bf16",)) if bf16 else ("avx512", ())
        return Isa(name, 16, 32, features, target)
    if has.get("avx2") and has.get("fma"):
        return Isa("avx2", 8, 16, (), Target("x86-64-v3", ""))
    raise RuntimeError("this CPU has neither AVX-512 nor AVX2 with FMA")
