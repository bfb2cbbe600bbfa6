"""Keeps freed memory in the process, so that outputs are not faulted in anew on every call.

Torch's operators allocate every result. glibc gives large blocks back to the system when they are
freed, and the next call pays a page fault for each 4 KiB it writes: up to 40 % of a layer's time.
"""

from __future__ import annotations

import ctypes

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_pages() -> bool:
    """Tells glibc's malloc to keep freed memory until the process ends.

    The process's memory then stays at its peak. Returns whether this took effect: False where the
    C library is not glibc, or where its malloc is replaced by one without ``mallopt``.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (raises AttributeError where it is not glibc)
        # No block gets a mapping of its own, and the heap is never trimmed (-1).
        return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))
    except (AttributeError, OSError, TypeError):
        return False
