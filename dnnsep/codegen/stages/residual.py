"""What is added to a stage's sums on their way to the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from dnnsep.codegen.lang.activate import activate
from dnnsep.codegen.lang.emit import Code


@dataclass(frozen=True)
class Residual:
    """Values like the output's, ``pitch`` elements from one pixel to the next, which are added to
    the sums before their activation, or ``after`` it."""

    pitch: int
    after: bool = False


def activated(
    code: Code,
    activation: str,
    total: ir.Value,
    residual: Residual | None,
    load: Callable[[], ir.Value] | None,
    rough: bool,
) -> ir.Value:
    """Emits the activation of a vector of sums, ``rough`` where the result is rounded to bf16, with
    the residual's vector, which ``load`` reads, added where there is one; returns the result."""
    if residual is None:
        return activate(code, activation, total, rough)
    assert load is not None
    if residual.after:
        return code.builder.fadd(activate(code, activation, total, rough), load())
    return activate(code, activation, code.builder.fadd(total, load()), rough)
