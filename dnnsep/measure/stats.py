"""Summarizes a sample of times: the median with its 95 % interval, quartiles, minimum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

CONFIDENCE = 0.95

# No measurement takes no time.
Time = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# With fewer rounds no order statistics enclose the median with 95 % confidence (2 · 2**-6 < 0.05).
MIN_ROUNDS = 6

# How many times their best a control's loops take at most on a quiet machine, and a cache line
# between cores that are near each other. Far cores take 7 times as long, and none were seen to lie
# between near and far.
_QUIET_BUSY = 1.15
_QUIET_LOADS = 1.12
_NEAR_HANDOVER = 2.0


class Control(BaseModel):
    """The state that the machine was in at a moment, on the threads that a round uses.

    ``busy_us`` is the time of a fixed number of multiply-adds on every thread: longer at a lower
    clock, or when others use the cores. ``loads_us`` is the time of a fixed number of loads from
    the innermost cache: longer when another hardware thread of the same core loads too, which
    multiply-adds hardly notice. ``handover_ns`` is the time a cache line takes from one
    thread's core to the next one's (None with one thread): virtual machines move between cores
    that share a cache and cores that do not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    busy_us: Time
    loads_us: Time
    handover_ns: Time | None

    @classmethod
    def best(cls, controls: Iterable[Control]) -> Control:
        """Returns the least of each time. Raises ValueError without a control."""
        controls = list(controls)
        handovers = [c.handover_ns for c in controls if c.handover_ns is not None]
        return cls(
            busy_us=min(c.busy_us for c in controls),
            loads_us=min(c.loads_us for c in controls),
            handover_ns=min(handovers, default=None),
        )

    def quiet(self, best: Control) -> bool:
        """Returns whether others left the cores alone, judged by the best control there was."""
        return (
            self.busy_us <= _QUIET_BUSY * best.busy_us
            and self.loads_us <= _QUIET_LOADS * best.loads_us
        )

    def near(self, best: Control) -> bool:
        """Returns whether the cores hand over a cache line about as fast as in the best control.

        They do so with one thread.
        """
        if self.handover_ns is None or best.handover_ns is None:
            return True
        return self.handover_ns <= _NEAR_HANDOVER * best.handover_ns


class Round(BaseModel):
    """The times in microseconds of calls made one after the other, between two controls.

    Calls of one round share what the machine was doing at the time, so rounds, not calls, are the
    independent observations. ``visit`` counts from 0 how often the sweep came to the problem.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    visit: int
    before: Control
    after: Control
    calls_us: Annotated[list[Time], Field(min_length=1)]

    @property
    def median_us(self) -> float:
        """Returns the median of the calls' times."""
        return float(np.median(self.calls_us))

    @property
    def busy_us(self) -> float:
        """Returns the mean of the controls' ``busy_us`` before and after the calls."""
        return (self.before.busy_us + self.after.busy_us) / 2


class Stats(BaseModel):
    """Times in microseconds of ``count`` calls made in ``rounds`` rounds.

    ``median_us`` is the median of the rounds' medians and [``low_us``, ``high_us``] its 95 %
    interval, from order statistics (exact, no distribution assumed); both are None with fewer than
    six rounds. Quartiles and the minimum are over all calls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    median_us: Time
    low_us: Time | None
    high_us: Time | None
    q25_us: Time
    q75_us: Time
    min_us: Time
    count: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]

    @property
    def spread(self) -> float:
        """Returns half the interquartile range as a share of the median."""
        return (self.q75_us - self.q25_us) / 2 / self.median_us

    @property
    def precision(self) -> float | None:
        """Returns half the median's 95 % interval as a share of the median; None without one."""
        if self.low_us is None or self.high_us is None:
            return None
        return (self.high_us - self.low_us) / 2 / self.median_us

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Stats:
        """Returns the summary of all rounds. Raises ValueError without a round."""
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
    """Returns the 95 % interval of the median of independent values; None with fewer than six."""
    if len(values) < MIN_ROUNDS:
        return None
    from scipy.stats import quantile_test

    # The type stubs take the interval for a float.
    interval: Any = quantile_test(values, p=0.5).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def geomean(ratios: Sequence[float]) -> float:
    """Returns the geometric mean of positive numbers; nan without one."""
    return float(np.exp(np.mean(np.log(ratios))))
