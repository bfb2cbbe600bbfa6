"""Decides which CPUs the threads of this process run on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

# How long the threads of an engine are watched, and the share of the busiest one's CPU time from
# which a thread counts as one that works.
_WATCH_SECONDS = 0.05
_WORKING_SHARE = 0.3


def keep_on(cpus: list[int]) -> bool:
    """Lets all threads of this process, and those they start, run on these CPUs only.

    Returns False where the system cannot do so or refuses.
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    try:
        for thread in _threads():
            with contextlib.suppress(ProcessLookupError):  # the thread has ended meanwhile
                os.sched_setaffinity(thread, cpus)
    except OSError:
        return False
    return True


def pin_workers(cpus: list[int], call: Callable[[], Any]) -> None:
    """Pins each thread that does the work of ``call`` to a CPU of its own.

    Left to itself Linux may wake an engine's threads all on one CPU and spread them only after
    tens of milliseconds. ``call`` is made again and again for 50 ms to see which threads work;
    threads that only wait stay where they were. Nothing is pinned where the system does not record
    the CPU times of threads.
    """
    before = _cpu_times()
    end = perf_counter() + _WATCH_SECONDS
    call()
    while perf_counter() < end:
        call()
    used = {thread: after - before.get(thread, 0) for thread, after in _cpu_times().items()}
    busiest = sorted(used, key=lambda thread: -used[thread])[: len(cpus)]
    working = [thread for thread in busiest if used[thread] > _WORKING_SHARE * used[busiest[0]]]
    for thread, cpu in zip(sorted(working), cpus, strict=False):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread, {cpu})


def _threads() -> list[int]:
    """Returns the ids of this process's threads. Raises OSError where there is no /proc."""
    return [int(name) for name in os.listdir("/proc/self/task")]


def _cpu_times() -> dict[int, int]:
    """Returns the CPU time of each thread in nanoseconds; empty where it is not recorded."""
    times = {}
    with contextlib.suppress(OSError):
        for thread in _threads():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/self/task/{thread}/schedstat").read_text()
                times[thread] = int(text.split()[0])
    return times
