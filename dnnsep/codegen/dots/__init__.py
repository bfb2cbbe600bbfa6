"""The ways of multiplying a tile by a panel of weights: a file each, and the table of all.

A new way is a file with a class as ``base.Dot`` describes it, and a line in DOTS.
"""

from __future__ import annotations

from dnnsep.codegen.dots.base import Dot
from dnnsep.codegen.dots.dp_bf16 import DpBf16
from dnnsep.codegen.dots.fma_f32 import FmaF32
from dnnsep.codegen.dots.widened_bf16 import WidenedBf16
from dnnsep.codegen.lang.isa import Isa

__all__ = ["DOTS", "Dot", "dot_for"]

# The preferred one of a dtype comes first.
DOTS: tuple[Dot, ...] = (FmaF32(), DpBf16(), WidenedBf16())


def dot_for(dtype: str, isa: Isa) -> Dot:
    """Returns the way of multiplying that a problem's dtype is served by on a CPU."""
    return next(d for d in DOTS if d.dtype == dtype and all(map(isa.has, d.needs)))
