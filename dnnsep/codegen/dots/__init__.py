"""The ways of multiplying a tile by a panel of weights: a file each, and the table of all.

A new way is a file with a class as ``base.Dot`` describes it, and a line in DOTS.
"""

from __future__ import annotations

from dnnsep.codegen.dots.amx_bf16 import AmxBf16
from dnnsep.codegen.dots.base import Dot, VectorDot
from dnnsep.codegen.dots.dp_bf16 import DpBf16
from dnnsep.codegen.dots.fma_f32 import FmaF32
from dnnsep.codegen.dots.widened_bf16 import WidenedBf16
from dnnsep.codegen.lang.isa import Isa

__all__ = ["DOTS", "Dot", "VectorDot", "dots_for"]

DOTS: tuple[Dot, ...] = (FmaF32(), AmxBf16(), DpBf16(), WidenedBf16())


def dots_for(dtype: str, isa: Isa) -> list[Dot]:
    """Returns the ways of multiplying that a CPU has for a problem's dtype."""
    return [d for d in DOTS if d.dtype == dtype and all(map(isa.has, d.needs))]
