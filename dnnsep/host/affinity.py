"""Which CPUs the threads of this process run on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

# How long to watch which threads do an engine's work, and the share of the busiest one's time from
# which a thread counts as one of them.
_WATCH_SECONDS = 0.05
_WORKS = 0.3


def keep_on(cpus: list[int]) -> bool:
    """Let every thread of this process, and those they start, run on any of these CPUs.

    Returns False where the system has no way to or refuses.
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    try:
        for thread in _threads():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(thread, cpus)
    except OSError:
        return False
    return True


def pin_workers(cpus: list[int], call: Callable[[], Any]) -> None:
    """Give each thread that does ``call``'s work a CPU of its own.

    Left to itself Linux may wake an engine's threads all on one CPU and spread them only after
    tens of milliseconds. Threads that only wait stay where they were. Without a record of the
    threads' times nothing is pinned.
    """
    before = _run_times()
    end = perf_counter() + _WATCH_SECONDS
    call()
    while perf_counter() < end:
        call()
    ran = {thread: now - before.get(thread, 0) for thread, now in _run_times().items()}
    busiest = sorted(ran, key=lambda thread: -ran[thread])[: len(cpus)]
    working = [thread for thread in busiest if ran[thread] > _WORKS * ran[busiest[0]]]
    for thread, cpu in zip(sorted(working), cpus, strict=False):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread, {cpu})


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _run_times() -> dict[int, int]:
    """Nanoseconds on a CPU by thread; empty where the system does not say."""
    times = {}
    with contextlib.suppress(OSError):
        for thread in _threads():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/self/task/{thread}/schedstat").read_text()
                times[thread] = int(text.split()[0])
    return times
