"""Large pages: asked for where they help, and nowhere else."""

from __future__ import annotations

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path

import numpy as np
import pytest

from dnnsep.host.pages import ask_for_large_pages

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _flags(address: int) -> list[str]:
    """Returns what Linux notes of the memory at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            first, end = (int(number, 16) for number in words[0].split("-"))
            inside = first <= address < end
        elif inside and words[0] == "VmFlags:":
            return words[1:]
    raise AssertionError(f"no memory at {address:x}")


@pytest.mark.parametrize(("size", "large"), [(1 << 20, False), (64 << 20, True)])
def test_large_pages_are_asked_for_where_they_help(size: int, large: bool) -> None:
    # Not NumPy's own memory: it asks for large pages itself.
    memory = np.frombuffer(mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS), np.uint8)
    middle = memory.ctypes.data + size // 2
    assert "hg" not in _flags(middle)
    asked = ask_for_large_pages(memory.ctypes.data, size)
    assert asked == (large and _SETTING.exists())
    assert ("hg" in _flags(middle)) == asked
    memory[:] = 7
    assert (memory == 7).all()
