"""Memory in large pages: Linux hands it out, and the CPU finds it, 2 MiB at a time."""

from __future__ import annotations

import ctypes
from functools import cache

# Linux's number for it, and the size of the pages that memory is advised by.
_HUGE_PAGES, _PAGE = 14, 4096

# Of less memory than that large pages would hold little else.
_LEAST = 4 << 20


def ask_for_large_pages(address: int, size: int) -> bool:
    """Asks Linux to use large pages for memory that nobody has written to yet; returns whether it
    will if it has some. Memory of less than 4 MiB stays as it is."""
    first, end = -(-address // _PAGE) * _PAGE, (address + size) // _PAGE * _PAGE
    return end - first >= _LEAST and _madvise()(first, end - first, _HUGE_PAGES) == 0


@cache
def _madvise() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
