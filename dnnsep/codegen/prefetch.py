"""What a multiplication fetches meanwhile: input that the next tile is the first to need."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.emit import I64, Code
from dnnsep.codegen.plan import Plan
from dnnsep.problem import Problem

_LINE = 64
_BYTE = ir.IntType(8)


@dataclass(frozen=True)
class Prefetch:
    """A piece's new input: ``rows`` runs of bytes, ``pitch`` bytes apart, of which each of the
    piece's multiplications fetches ``share`` bytes of each."""

    rows: int
    pitch: int
    share: int

    def emit(
        self, code: Code, start: ir.Value, at: ir.Value, steps: int, steps_at_once: int
    ) -> None:
        """Fetch what falls to the steps from ``at`` on, of all ``steps``."""
        per_step = -(-self.share // steps)
        moved = code.at(start, code.builder.mul(at, I64(per_step)), _BYTE)
        for row in range(self.rows):
            for offset in range(0, per_step * steps_at_once, _LINE):
                code.prefetch(code.at(moved, row * self.pitch + offset, _BYTE))


def new_rows(problem: Problem) -> int:
    """The lowest rows under the kernel, which the output row above did not have."""
    return min(problem.stride[0], (problem.kernel[0] - 1) * problem.dilation[0] + 1)


def prefetch_for(problem: Problem, plan: Plan, panels: int) -> Prefetch | None:
    """What each of the multiplications by so many panels fetches, if the plan has it."""
    if not plan.prefetch:
        return None
    element = 2 if problem.dtype == "bf16" else 4
    pixel = problem.in_channels * element
    pitch, rows = problem.width * pixel, new_rows(problem)
    if len(plan.rows) > 1:
        run = plan.rows[0].width * problem.stride[1] * pixel
    else:  # whole rows, which follow each other in memory
        run, rows = plan.rows_per_piece * rows * pitch, 1
    share = -(-run // panels)
    return Prefetch(rows, pitch, -(-share // _LINE) * _LINE)
