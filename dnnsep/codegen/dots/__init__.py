"""The ways of multiplying a tile by a panel of weights: a file each, and the table of all.

A new way is a file with a class as ``base.Dot`` describes it, and a line in DOTS.
"""

from __future__ import annotations

from dnnsep.codegen.dots.amx import AmxBf16, AmxU8S8
from dnnsep.codegen.dots.base import Dot, VectorDot
from dnnsep.codegen.dots.bytes import ByteDot, VexVnniU8S8, VnniU8S8, WidenedU8S8
from dnnsep.codegen.dots.dp_bf16 import DpBf16
from dnnsep.codegen.dots.fma_f32 import FmaF32
from dnnsep.codegen.dots.widened_bf16 import WidenedBf16
from dnnsep.codegen.lang.isa import Isa
from dnnsep.dtypes import PRECISIONS

__all__ = ["DOTS", "Dot", "VectorDot", "byte_dot", "dots_for"]

DOTS: tuple[Dot, ...] = (
    FmaF32(),
    *(AmxBf16(), DpBf16(), WidenedBf16()),
    *(AmxU8S8(), VnniU8S8(), VexVnniU8S8(), WidenedU8S8()),
)


def dots_for(dtype: str, isa: Isa) -> list[Dot]:
    """Returns the ways of multiplying that a CPU has for a problem's dtype."""
    of = "u8s8" if PRECISIONS[dtype].quantized else dtype
    return [d for d in DOTS if d.dtype == of and all(map(isa.has, d.needs))]


def byte_dot(isa: Isa) -> ByteDot:
    """Returns the best way that a CPU's vectors have of multiplying bytes."""
    return next(d for d in DOTS if isinstance(d, ByteDot) and all(map(isa.has, d.needs)))
