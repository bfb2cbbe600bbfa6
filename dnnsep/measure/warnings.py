"""What makes a figure doubtful: said beside it, never left to the reader to notice."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from time import monotonic

import numpy as np
import psutil

from dnnsep.measure.stats import Round, Stats

_MAX_SPREAD = 0.10
_MAX_OTHERS = 0.05
_MAX_STEAL = 0.02
_MAX_DRIFT = 0.05
_MAX_LOADS_RATIO = 1.2
_MAX_HANDOVER_RATIO = 1.5
_MAX_CACHE_RATIO = 1.5


class Load:
    """What others did on this machine between the start and ``stop``.

    ``others`` is the CPU time of processes that are not the sweep's, ``steal`` what a hypervisor
    took for other guests, as shares of all CPUs' time.
    """

    others = 0.0
    steal = 0.0

    def __init__(self, workers: Sequence[int]) -> None:
        """``workers`` are the process ids that count as the sweep's own, beside this one."""
        self._processes = [psutil.Process()]
        for pid in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._processes.append(psutil.Process(pid))
        self._before = self._now()

    def stop(self) -> None:
        elapsed, busy, steal, own = (
            after - before for after, before in zip(self._now(), self._before, strict=True)
        )
        capacity = elapsed * (psutil.cpu_count() or 1)
        if capacity > 0:
            self.others, self.steal = max(0.0, busy - own) / capacity, steal / capacity

    def _now(self) -> tuple[float, float, float, float]:
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
    """Cold over hot, from a median in one cache state and a few calls in the other."""
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
    """Everything doubtful about a record; ``rounds`` are all of it, the last visit's at the end."""
    found = []
    if time.spread > _MAX_SPREAD:
        found.append(f"spread: half the interquartile range is {time.spread:.0%} of the median")
    if load.others > _MAX_OTHERS:
        found.append(f"load: other processes used {load.others:.0%} of the CPUs")
    if load.steal > _MAX_STEAL:
        found.append(f"load: the hypervisor took {load.steal:.0%} of the CPUs")
    found += _drift(rounds)
    if denormals:
        found.append("denormals: the result or what is between the stages holds denormal numbers")
    if cold_over_hot is not None and cold_over_hot > _MAX_CACHE_RATIO:
        found.append(
            f"cache: cold takes {cold_over_hot:.1f} times as long as hot, only {cache} measured"
        )
    return found


def _drift(rounds: Sequence[Round]) -> list[str]:
    """Changes of the machine from the start to the end of the last visit."""
    visit = [r for r in rounds if r.visit == rounds[-1].visit]
    first, last = visit[0].before, visit[-1].after
    found = []
    if abs(last.busy_us / first.busy_us - 1) > _MAX_DRIFT:
        change = last.busy_us / first.busy_us - 1
        found.append(f"clock: the control loop took {change:+.0%} at the end of the case")
    loads = [control.loads_us for turn in visit for control in (turn.before, turn.after)]
    if max(loads) > _MAX_LOADS_RATIO * min(loads):
        found.append(
            f"neighbour: loads took {max(loads) / min(loads) - 1:.0%} longer at times, as when "
            "another hardware thread of the core is busy"
        )
    if first.handover_ns and last.handover_ns:
        low, high = sorted((first.handover_ns, last.handover_ns))
        if high / low > _MAX_HANDOVER_RATIO:
            found.append(
                f"cores: handing over a cache line took {first.handover_ns:.0f} ns at the start "
                f"and {last.handover_ns:.0f} ns at the end of the case"
            )
    return found
