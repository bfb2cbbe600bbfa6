"""What a step of a program is to what runs it: a generated kernel and the structure it takes."""

from __future__ import annotations

import ctypes
from typing import Protocol

from dnnsep.codegen.lang.jit import Function


class Step(Protocol):
    """Work that a team of threads does in one call of a generated kernel.

    Each thread of the team calls ``kernel(task)`` at once with the same task, and the kernel finds
    out by OpenMP's functions, whose addresses are in the task, which share is its own; a team of
    any size does all of the work.
    """

    @property
    def kernel(self) -> Function:
        """The compiled kernel: ``f(task)``."""

    @property
    def parts(self) -> int:
        """How many threads can share the work."""

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory that all threads of a call need together."""

    def task(self, scratch: int) -> ctypes.Structure:
        """Returns a new task, with scratch memory at an address that is a multiple of 64.

        Its operands, which are fields with the addresses of what is read and written, are still 0:
        who runs the step sets them. The step must outlive the task.
        """
