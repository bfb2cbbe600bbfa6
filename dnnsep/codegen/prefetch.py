"""What a multiplication fetches meanwhile: input that the next tile is the first to need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llvmlite import ir

from dnnsep.codegen.lang.emit import BYTE, I64, Code
from dnnsep.dtypes import PRECISIONS

if TYPE_CHECKING:
    from dnnsep.codegen.extent import Extent
    from dnnsep.codegen.layer import Layer
    from dnnsep.codegen.plan import Plan

_LINE = 64


@dataclass(frozen=True)
class Prefetch:
    """Fetching a piece's new input ahead: the lowest ``new_rows`` rows under the kernel.

    They are ``runs`` runs of bytes, ``pitch`` bytes apart; each of the piece's multiplications
    fetches ``share`` bytes of each run.
    """

    new_rows: int
    runs: int
    pitch: int
    share: int

    def emit(
        self, code: Code, start: ir.Value, at: ir.Value, steps: int, steps_at_once: int
    ) -> None:
        """Emits fetching what falls to the steps from ``at`` on, of all ``steps``."""
        per_step = -(-self.share // steps)
        moved = code.at(start, code.builder.mul(at, I64(per_step)), BYTE)
        for run in range(self.runs):
            for offset in range(0, per_step * steps_at_once, _LINE):
                code.prefetch(code.at(moved, run * self.pitch + offset, BYTE))


@dataclass(frozen=True)
class Ahead:
    """Fetching the next panel ahead: while a panel is multiplied, each of a tile's pieces fetches
    a share of the panel after it into the second cache, from which other layers' weights have
    pushed it since the last call: ``lines`` in each round of its loop."""

    lines: int

    @classmethod
    def of(cls, panel_bytes: int, tile: int, rounds: int) -> Ahead:
        """Returns what a tile of so many pieces fetches, each by so many rounds."""
        return cls(-(-panel_bytes // (tile * rounds * _LINE)))

    @staticmethod
    def share(code: Code, panel_bytes: int, tile: ir.Value) -> ir.Value:
        """Returns the bytes of a panel that each piece of a tile fetches."""
        b = code.builder
        lines = -(-panel_bytes // _LINE)
        each = b.sdiv(b.add(b.sub(tile, I64(1)), I64(lines)), tile)
        return b.mul(each, I64(_LINE))

    def emit(self, code: Code, start: ir.Value, at: ir.Value, steps_at_once: int) -> None:
        """Emits fetching what falls to the round of so many steps that begins at step ``at``."""
        moved = code.at(start, code.builder.mul(at, I64(self.lines * _LINE // steps_at_once)), BYTE)
        for line in range(self.lines):
            code.prefetch(code.at(moved, line * _LINE, BYTE), level=2)


def prefetch_for(
    layer: Layer, extent: Extent, plan: Plan, panels: int, x_pitch: int
) -> Prefetch | None:
    """Returns what each of the multiplications by so many panels fetches, if the plan has it.

    Where most of what is between the channels of two pixels is another slice's, nothing is.
    """
    if not plan.prefetch or x_pitch > 2 * layer.channels:
        return None
    window = layer.window
    pixel = x_pitch * PRECISIONS[layer.dtype].source.bytes
    pitch = extent.width * pixel
    # Those that the output row above did not have.
    new_rows = min(window.stride[0], (window.kernel[0] - 1) * window.dilation[0] + 1)
    if plan.short_rows:  # whole rows, which follow each other in memory
        out_width = extent.out_size(window)[1]
        runs, run = 1, -(-plan.pixels * new_rows * pitch // out_width)
    else:
        runs, run = new_rows, plan.rows[0].width * window.stride[1] * pixel
    share = -(-run // panels)
    return Prefetch(new_rows, runs, pitch, -(-share // _LINE) * _LINE)
