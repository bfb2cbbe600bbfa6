"""A sample of times, summarized: the median with its 95 % interval, quartiles, minimum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

CONFIDENCE = 0.95

# With fewer rounds no order statistics enclose the median with 95 % confidence (2 · 2**-6 < 0.05).
MIN_ROUNDS = 6


# How much longer than at best the control's loops take at most on a quiet machine, and how much
# longer a cache line takes between cores that are near each other: there is nothing between near
# and far, which differ by 7 times.
_QUIET_BUSY = 1.15
_QUIET_LOADS = 1.12
_NEAR_HANDOVER = 2.0


class Control(BaseModel):
    """How the machine did at a moment, on the threads that a round uses.

    ``busy_us`` is the time of a fixed number of multiply-adds on every thread: longer at a lower
    clock, or when others use the cores. ``loads_us`` is the time of a fixed number of loads from
    the innermost cache: longer when another hardware thread of the same core loads too, which
    multiply-adds hardly notice. ``handover_ns`` is the time a cache line takes from one
    thread's core to the next one's (None with one thread): virtual machines move between cores
    that share a cache and cores that do not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    busy_us: float
    loads_us: float
    handover_ns: float | None

    @classmethod
    def best(cls, controls: Iterable[Control]) -> Control:
        """The least of each. Raises ValueError without a control."""
        found = list(controls)
        handovers = [c.handover_ns for c in found if c.handover_ns is not None]
        return cls(
            busy_us=min(c.busy_us for c in found),
            loads_us=min(c.loads_us for c in found),
            handover_ns=min(handovers, default=None),
        )

    def quiet(self, best: Control) -> bool:
        """Whether others left the cores alone, as far as the best there was shows."""
        return (
            self.busy_us <= _QUIET_BUSY * best.busy_us
            and self.loads_us <= _QUIET_LOADS * best.loads_us
        )

    def near(self, best: Control) -> bool:
        """Whether the cores share a cache, or do so as little as they ever did."""
        if self.handover_ns is None or best.handover_ns is None:
            return True
        return self.handover_ns <= _NEAR_HANDOVER * best.handover_ns


class Round(BaseModel):
    """A burst of calls one after the other, in microseconds each, between two controls.

    Calls of one round share what the machine was doing at the time, so rounds, not calls, are the
    independent observations. ``visit`` counts the times the sweep came to the problem, from 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    visit: int
    before: Control
    after: Control
    calls_us: list[float]

    @property
    def median_us(self) -> float:
        return float(np.median(self.calls_us))

    @property
    def busy_us(self) -> float:
        """Of the multiply-adds, the mean of before and after."""
        return (self.before.busy_us + self.after.busy_us) / 2


class Stats(BaseModel):
    """Times in microseconds of ``count`` calls made in ``rounds`` rounds.

    ``median_us`` is the median of the rounds' medians and [``low_us``, ``high_us``] its 95 %
    interval, from order statistics (exact, no distribution assumed); both are None with fewer than
    six rounds. Quartiles and the minimum are over all calls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    median_us: float
    low_us: float | None
    high_us: float | None
    q25_us: float
    q75_us: float
    min_us: float
    count: int
    rounds: int

    @property
    def spread(self) -> float:
        """Half the interquartile range as a share of the median."""
        return (self.q75_us - self.q25_us) / 2 / self.median_us

    @property
    def precision(self) -> float | None:
        """Half the median's 95 % interval as a share of the median."""
        if self.low_us is None or self.high_us is None:
            return None
        return (self.high_us - self.low_us) / 2 / self.median_us

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Stats:
        """Raises ValueError without a round."""
        calls = np.concatenate([np.asarray(r.calls_us) for r in rounds])
        medians = [r.median_us for r in rounds]
        low, high = median_interval(medians) or (None, None)
        q25, q75 = np.quantile(calls, [0.25, 0.75])

        def us(value: float) -> float:
            return round(float(value), 3)

        return cls(
            median_us=us(np.median(medians)),
            low_us=None if low is None else us(low),
            high_us=None if high is None else us(high),
            q25_us=us(q25),
            q75_us=us(q75),
            min_us=us(calls.min()),
            count=len(calls),
            rounds=len(medians),
        )


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the median of independent values; None with fewer than six."""
    if len(values) < MIN_ROUNDS:
        return None
    from scipy.stats import quantile_test

    # The stubs take the interval for a float.
    interval: Any = quantile_test(values, p=0.5).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def geomean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))
