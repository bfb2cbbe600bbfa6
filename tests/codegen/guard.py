"""Memory with forbidden pages on both sides: a byte read or written outside kills the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE
_PROT_NONE = 0


class Guarded:
    """``size`` bytes that end where a forbidden page begins, or begin where one ends."""

    def __init__(self, size: int, at_end: bool) -> None:
        pages = -(-max(size, 1) // _PAGE)
        self._map = mmap.mmap(-1, (pages + 2) * _PAGE)
        whole = np.frombuffer(self._map, np.uint8)
        start = whole.ctypes.data
        for page in (start, start + (pages + 1) * _PAGE):
            if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        first = (pages + 1) * _PAGE - size if at_end else _PAGE
        self.bytes: NDArray[np.uint8] = whole[first : first + size]
