"""Runs a kernel without a program around it."""

from __future__ import annotations

import ctypes

from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.shared import Entry
from dnnsep.codegen.team import Work


def run_parts(
    kernel: Function,
    task: ctypes.Structure,
    parts: int,
    scratch: int,
    scratch_bytes: int,
    threads: int = 2,
) -> None:
    """Does all parts of a task, by so many threads at most; each has so many bytes of the memory at
    ``scratch``."""
    entry = Entry(kernel.address, ctypes.addressof(task))
    phase = [(ctypes.addressof(entry), part) for part in range(parts)]
    Work([phase], threads, scratch, scratch_bytes).run()
