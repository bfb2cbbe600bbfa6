"""Runs a kernel without a program around it, and modules that may be killed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

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
    phase = [[(ctypes.addressof(entry), part)] for part in range(parts)]
    Work([phase], threads, scratch, scratch_bytes).run()


def run_alone(module: str, setting: dict[str, str], seed: int, count: int, *more: str) -> None:
    """Runs so many random problems of a module in a process of its own, with these environment
    variables: touching a forbidden page kills it; ``more`` are its last arguments. Asserts that it
    ran them all."""
    run = subprocess.run(
        [sys.executable, "-m", module, str(seed), str(count), *more],
        env={**os.environ, **setting, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = run.stdout.splitlines()[-1:]
    assert run.returncode == 0, f"{last}: {run.returncode} {run.stderr[-500:]}"
    assert len(run.stdout.splitlines()) == count
