"""For which sizes of its images a model is the same graph, as a condition in text."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

NAMES = ("images", "height", "width")
_FUNCTIONS = {"math": math, "max": max, "min": min}

# What conditions are made of. They come out of files, too, and are run: nothing else may be in one.
_PARTS = (
    ast.Expression,
    ast.BoolOp,
    ast.IfExp,
    ast.And,
    ast.Or,
    ast.Not,
    ast.UnaryOp,
    ast.USub,
    ast.UAdd,
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.Compare,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
    ast.Load,
)


@dataclass(frozen=True)
class Sizes:
    """The sizes for which a condition holds, in which ``images``, ``height`` and ``width`` are
    numbers. Raises ValueError for a text that is no such condition."""

    text: str

    def __post_init__(self) -> None:
        try:
            tree = ast.parse(self.text, mode="eval")
        except (SyntaxError, RecursionError, MemoryError):
            raise ValueError(f"sizes {self.text[:40]!r}: no condition") from None
        for part in ast.walk(tree):
            if not _is_allowed(part):
                raise ValueError(f"sizes: {type(part).__name__} is in the condition")

    def which(self, condition: str) -> Sizes:
        """Returns those of the sizes for which another condition holds as well."""
        return self if condition == "True" else Sizes(f"({self.text}) and ({condition})")

    @cached_property
    def _holds(self) -> Callable[[int, int, int], bool]:
        source = f"lambda {', '.join(NAMES)}: ({self.text})"
        found: Callable[[int, int, int], bool] = eval(source, {"__builtins__": {}, **_FUNCTIONS})
        return found

    def allows(self, images: int, height: int, width: int) -> bool:
        """Returns whether the condition holds for a size."""
        return bool(self._holds(images, height, width))


def _is_allowed(part: ast.AST) -> bool:
    if isinstance(part, ast.Name):
        return part.id in NAMES or part.id in _FUNCTIONS
    if isinstance(part, ast.Constant):
        return type(part.value) in (int, float, bool)
    if isinstance(part, ast.Attribute):  # math.ceil, math.floor
        return isinstance(part.value, ast.Name) and part.attr in ("ceil", "floor", "trunc", "sqrt")
    if isinstance(part, ast.Call):
        return not part.keywords
    return isinstance(part, _PARTS)
