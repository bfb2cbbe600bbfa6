"""Whether there is AMX, and the right to use its tiles, which Linux gives a process that asks."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

# arch_prctl(2) and its request for an extended state, of which this one holds the tiles' contents.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


@cache
def is_there() -> bool:
    """Returns whether the CPU multiplies tiles of bf16, as Linux says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    return any("amx_bf16" in line.split() for line in lines if line.startswith("flags"))


@cache
def refusal() -> str:
    """Asks for AMX once a process; returns why it may not be used, nothing where it may.

    It is best asked for before other threads start: the system refuses where the stack for signals
    of one of them is too small for the tiles. Whether the CPU has AMX is not looked at.
    """
    if sys.platform != "linux":
        return "AMX is asked for on Linux only"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0:
        return ""
    return f"the system refuses AMX: {os.strerror(ctypes.get_errno())}"
