"""What a step of a program is to what runs it: a generated kernel and the structure it takes."""

from __future__ import annotations

import ctypes
from typing import Protocol

from dnnsep.codegen.lang.jit import Function


class Step(Protocol):
    """Work in equal parts, each of which is one call of a generated kernel.

    ``kernel(task, part, scratch)`` does the part of a number, on any thread and beside any other.
    The results are the same whoever does which. A step that can say what a part touches also has
    ``reach(part)`` (see reach.py), so that parts of it need not wait for others.
    """

    @property
    def kernel(self) -> Function:
        """The compiled kernel: ``f(task, part, scratch)``, see KERNEL."""

    @property
    def parts(self) -> int:
        """How many parts there are: as many threads can share the work."""

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory that a part needs, at an address that is a multiple of 64."""

    def task(self) -> ctypes.Structure:
        """Returns a new task.

        Its operands, which are fields with the addresses of what is read and written, are still 0:
        who runs the step sets them. The step must outlive the task.
        """
