"""Compiles single functions of a kernel and runs them between forbidden pages.

A function that touches a forbidden page kills the process; pytest's fault handler then names the
test that it was.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.dots import Dot
from dnnsep.codegen.lang.emit import F32, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.stages.base import Row, Window
from dnnsep.dtypes import BF16, Array
from tests.codegen.guarded import Guarded

# What memory holds that nobody has written: a number of every dtype that no test computes.
JUNK = np.float32(-12288.0)


def compiled(functions: Sequence[ir.Function], isa: Isa) -> list[Function]:
    """Returns functions of one module, which in a kernel only the kernel calls, to be called with
    addresses and counts."""
    module = functions[0].parent
    for function in functions:
        function.linkage = "external"
    code = machine_code(module, isa.target)
    return [
        Function(code, function.name, [_ctype(argument.type) for argument in function.args])
        for function in functions
    ]


def _ctype(kind: ir.Type) -> type:
    return ctypes.c_void_p if isinstance(kind, ir.PointerType) else ctypes.c_int64


class Memory:
    """An array between forbidden pages: it ends where one begins, or begins where one ends."""

    def __init__(self, content: NDArray[Any], at_end: bool) -> None:
        self._guarded = Guarded(content.nbytes, at_end)
        self.array = self._guarded.bytes.view(content.dtype).reshape(content.shape)
        self.array[...] = content
        self._given = content.tobytes()

    def at(self, element: int) -> int:
        """Returns the address of an element, counted from the first; it may lie outside."""
        return int(self.array.ctypes.data) + element * self.array.itemsize

    @property
    def untouched(self) -> bool:
        """Whether the bytes around the array are as they were."""
        return self._guarded.untouched

    @property
    def unchanged(self) -> bool:
        """Whether the array and the bytes around it are as they were."""
        return self.untouched and self.array.tobytes() == self._given


def stored(values: Array, dot: Dot) -> NDArray[Any]:
    """Returns values as a tile of this way of multiplying holds them."""
    return values if dot.element is F32 else BF16.stored(values)


def loaded(elements: NDArray[Any], dot: Dot) -> Array:
    """Returns the values of what a tile holds."""
    return elements if dot.element is F32 else BF16.loaded(elements)


def runs_of(width: int, most: int) -> list[Row]:
    """Returns a row of output pixels cut into runs of so many at most, the last one shorter."""
    return [Row(start, min(most, width - start)) for start in range(0, width, most)]


def kernel_rows(window: Window, out_row: int, height: int) -> tuple[int, int]:
    """Returns the first row of the kernel that meets an image of so many rows, and the one after
    the last; (0, 0) where none does."""
    top = out_row * window.stride[0] - window.padding[0]
    met = [i for i in range(window.kernel[0]) if 0 <= top + i * window.dilation[0] < height]
    return (met[0], met[-1] + 1) if met else (0, 0)


def function_of(isa: Isa, arguments: Sequence[ir.Type], body: Callable[[Code], None]) -> Function:
    """Returns a function of its own, compiled, whose code ``body`` writes."""
    module = ir.Module()
    module.triple = ""
    code = Code(module, "piece", arguments)
    body(code)
    (function,) = compiled([code.end()], isa)
    return function
