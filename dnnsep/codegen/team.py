"""Runs compiled functions on torch's own OpenMP threads: no second pool to fight with."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

# Any of these has GNU's entry points.
_LIBRARIES = ("libgomp", "libiomp5", "libomp")


@cache
def openmp() -> ctypes.CDLL:
    """Returns the OpenMP library that torch has loaded. Raises RuntimeError where there is none."""
    import torch  # noqa: F401  (loads it)

    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if path and Path(path).name.startswith(_LIBRARIES):
            library = ctypes.CDLL(f"/{path}")
            if hasattr(library, "GOMP_parallel"):
                return library
    raise RuntimeError("torch has loaded no OpenMP library")


def size(most: int) -> int:
    """Returns how many threads a team of so many at most has if the caller makes one now: those
    that torch.set_num_threads allows, and in a forked process one. A fork copies the memory of
    OpenMP and not its threads, which a larger team would wait for."""
    return 1 if _is_forked else min(most, _torch_threads()())


_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


os.register_at_fork(after_in_child=_note_fork)


@cache
def _torch_threads() -> Callable[[], int]:
    import torch

    return torch.get_num_threads


def address_of(name: str) -> int:
    """Returns the address of one of OpenMP's functions."""
    return ctypes.cast(getattr(openmp(), name), ctypes.c_void_p).value or 0


def parallel() -> Callable[[int, int, int, int], None]:
    """Returns ``parallel(function, argument, threads, 0)``, by addresses: each thread of a team
    calls function(argument)."""
    function = openmp().GOMP_parallel
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return cast("Callable[[int, int, int, int], None]", function)
