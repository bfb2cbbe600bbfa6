"""Finds what makes a figure doubtful, so that it stands beside the figure."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from time import monotonic

import numpy as np
import psutil

from dnnsep.measure.stats import Round, Stats

_MAX_SPREAD = 0.10
MAX_OTHERS = 0.05
MAX_STEAL = 0.02
_MAX_DRIFT = 0.05
_MAX_LOADS_RATIO = 1.2
_MAX_HANDOVER_RATIO = 1.5
_MAX_CACHE_RATIO = 1.5


class Load:
    """The CPU time that others took on this machine from the creation of this object to ``stop``.

    ``others`` is the CPU time of processes that are not the sweep's, ``steal`` the time that a
    hypervisor took for other guests, both as shares of all CPUs' time.
    """

    others = 0.0
    steal = 0.0

    def __init__(self, workers: Sequence[int]) -> None:
        """Starts the clock. ``workers`` are the ids of the sweep's processes beside this one."""
        self._processes = [psutil.Process()]
        for pid in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._processes.append(psutil.Process(pid))
        self._before = self._now()

    def stop(self) -> None:
        """Sets ``others`` and ``steal``."""
        elapsed, busy, steal, own = (
            after - before for after, before in zip(self._now(), self._before, strict=True)
        )
        capacity = elapsed * (psutil.cpu_count() or 1)
        if capacity > 0:
            self.others, self.steal = max(0.0, busy - own) / capacity, steal / capacity

    def _now(self) -> tuple[float, float, float, float]:
        """Returns the time, and the CPU time that was busy, stolen and the sweep's, in seconds."""
        times = psutil.cpu_times()
        steal = getattr(times, "steal", 0.0)
        busy = times.user + times.system + getattr(times, "nice", 0.0)
        own = 0.0
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                own += used.user + used.system
        return monotonic(), busy, steal, own


def ratio_to_other_cache(measured_us: float, other_calls_us: Sequence[float], cache: str) -> float:
    """Returns how many times as long calls take with cold caches as with hot ones.

    ``measured_us`` is the median in the state ``cache`` (``hot`` or ``cold``), and
    ``other_calls_us`` are the times of a few calls in the other state, all in microseconds.
    """
    ratio = float(np.median(other_calls_us)) / measured_us
    return ratio if cache == "hot" else 1 / ratio


def warnings_of(
    time: Stats,
    rounds: Sequence[Round],
    load: Load,
    denormals: bool,
    cold_over_hot: float | None,
    cache: str,
) -> list[str]:
    """Returns a line for everything that is doubtful about a record's time.

    ``rounds`` are all rounds of the record, those of the last visit at the end; ``denormals`` says
    whether a tensor holds denormal numbers; ``cold_over_hot`` is None where it was not measured.
    """
    warnings = []
    if time.spread > _MAX_SPREAD:
        warnings.append(f"spread: half the interquartile range is {time.spread:.0%} of the median")
    if load.others > MAX_OTHERS:
        warnings.append(f"load: other processes used {load.others:.0%} of the CPUs")
    if load.steal > MAX_STEAL:
        warnings.append(f"load: the hypervisor took {load.steal:.0%} of the CPUs")
    warnings += _drift(rounds)
    if denormals:
        warnings.append(
            "denormals: the result or what is between the stages holds denormal numbers"
        )
    if cold_over_hot is not None and cold_over_hot > _MAX_CACHE_RATIO:
        warnings.append(
            f"cache: cold takes {cold_over_hot:.1f} times as long as hot, only {cache} measured"
        )
    return warnings


def _drift(rounds: Sequence[Round]) -> list[str]:
    """Returns a line for each change of the machine during the last visit."""
    visit = [r for r in rounds if r.visit == rounds[-1].visit]
    first, last = visit[0].before, visit[-1].after
    warnings = []
    if abs(last.busy_us / first.busy_us - 1) > _MAX_DRIFT:
        change = last.busy_us / first.busy_us - 1
        warnings.append(f"clock: the control loop took {change:+.0%} at the end of the case")
    loads = [control.loads_us for turn in visit for control in (turn.before, turn.after)]
    if max(loads) > _MAX_LOADS_RATIO * min(loads):
        warnings.append(
            f"neighbour: loads took {max(loads) / min(loads) - 1:.0%} longer at times, as when "
            "another hardware thread of the core is busy"
        )
    if first.handover_ns and last.handover_ns:
        low, high = sorted((first.handover_ns, last.handover_ns))
        if high / low > _MAX_HANDOVER_RATIO:
            warnings.append(
                f"cores: handing over a cache line took {first.handover_ns:.0f} ns at the start "
                f"and {last.handover_ns:.0f} ns at the end of the case"
            )
    return warnings
