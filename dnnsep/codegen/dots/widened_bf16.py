"""bf16 read as f32 and multiplied so: for CPUs without bf16 products."""

from __future__ import annotations

from dnnsep.codegen.dots.fma_f32 import FmaF32


class WidenedBf16(FmaF32):
    """Tile and panel hold f32: what is read of the input is widened once, on its way there."""

    name = "widened_bf16"
    dtype = "bf16"
    reads_input = False
