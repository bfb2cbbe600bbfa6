"""Compiled kernels: made once for a process, and kept on disk for the next one."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from llvmlite import ir

from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.rowwise.special import PixelReduction, Rowwise
from dnnsep.codegen.task import KERNEL
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles

Special = TypeVar("Special", Rowwise, PixelReduction)


# So many stay for the next step; one that is in use stays with its step.
@lru_cache(256)
def compiled(special: Special, emit: Callable[[Special], ir.Module]) -> Function:
    """Returns the kernel, from the disk where it is there; otherwise by what emits its code."""
    key = f"{generator()} {special}"
    code = cachefiles.load("kernels", key)
    if code is None:
        code = machine_code(emit(special), special.isa.target)
        cachefiles.save("kernels", key, code)
    return Function(code, "run", KERNEL)
