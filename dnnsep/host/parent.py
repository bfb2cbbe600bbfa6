"""Ties a process to the one that started it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent(pipe: int) -> bool:
    """Has this process killed when the thread that started it ends, in whatever way.

    ``pipe`` is the end to read of a pipe that the parent alone writes to: where it is closed by
    now, the parent ended before this could be asked for, and so does this process. Returns False
    where the system has no such thing (only Linux does).
    """
    if sys.platform != "linux":
        return False
    done: int = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    poll = select.poll()
    poll.register(pipe, 0)  # the pipe's being closed is told in any case
    if any(event & select.POLLHUP for _, event in poll.poll(0)):
        os._exit(0)
    return done == 0
