"""Finds the nights from which on a case's time is another for good, and how sure that is.

A search proposes borders between levels, more than there are. Each is then tested against its
neighbours, and the least sure one is dropped until all that are left pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A level has so many nights at least: two beside other work may be in a row, three seldom are.
MIN_SIDE = 3
# What a level has to be off the one before for anybody to care.
LEAST = 0.02

# The kernel of two nights that are three times the noise apart is 0.4, at ten times it is 0.
# So a night far out weighs no more than one that is merely out.
_KERNEL_GAMMA = 0.1
# What a level more has to save of the kernel's cost, which is between 0 and 1 a night. It is low,
# since the test drops borders, and cannot add any.
_PENALTY = 1.0
# A clock and a scheduler leave medians at least so far apart (logarithms): without it a series
# that is alike to the last digit would make a step of anything.
_LEAST_NOISE = 0.002
# A night so many times the noise off its level tells no more about where the border is.
_WILD = 4.0
# The test moves nights that are further off their level to so many times the noise.
_WINSOR = 2.0
# A night that went so much of the way to the other level is taken to be on that one.
_FAR = 0.75
# The share of a look falls with this power of the nights seen: a lower one leaves less for the
# first looks, a higher one less for later.
_POWER = 3
# The standard deviation of normal numbers over the median of their sizes.
_OF_MEDIAN = 1.4826

Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """From ``index`` on nights take ``ratio`` times as long as those before, back to the step
    before.

    Without a step there, a difference as large or larger would be seen on one of the nights until
    now with a probability of ``p_value``.
    """

    index: int
    ratio: float
    p_value: float

    @property
    def is_small(self) -> bool:
        """Returns whether it is too small to matter, whatever its p-value."""
        return abs(math.log(self.ratio)) < math.log1p(LEAST)


def find_steps(times_us: Sequence[float], rate: float) -> list[Step]:
    """Returns the steps, of at least ``LEAST`` and with a p-value below ``rate``, in order."""
    logs: Logs = np.log(np.asarray(times_us, dtype=np.float64))
    if len(logs) < 2 * MIN_SIDE:
        return []
    borders = _candidates(logs)
    while borders:
        steps = _tested(logs, borders)
        weakest = max(steps, key=lambda step: (step.is_small, step.p_value))
        if weakest.p_value < rate and not weakest.is_small:
            return steps
        borders.remove(weakest.index)
    return []


def _candidates(logs: Logs) -> list[int]:
    """Returns the first nights of all segments but the first, as a search with a kernel finds them.

    Sources of the search: Arlot, Celisse and Harchaoui, A kernel multiple change-point algorithm
    via model selection, Journal of Machine Learning Research 20 (2019); Celisse, Marot, Pierre-Jean
    and Rigaill, New efficient algorithms for multiple change-point detection with reproducing
    kernels, Computational Statistics and Data Analysis 128 (2018).
    """
    from ruptures import KernelCPD

    # Steps are few, so that what neighbours differ by tells the noise whatever the steps are.
    noise = _noise(np.diff(logs)) / math.sqrt(2)
    search = KernelCPD(kernel="rbf", params={"gamma": _KERNEL_GAMMA}, min_size=MIN_SIDE)
    ends = [0, *map(int, search.fit((logs / noise)[:, None]).predict(pen=_PENALTY))]
    found: list[int] = []
    for start, border, end in zip(ends[:-2], ends[1:-1], ends[2:], strict=True):
        first = found[-1] if found else start
        placed = _placed(logs[first:end], border - first) + first
        if first + MIN_SIDE <= placed <= end - MIN_SIDE:
            found.append(placed)
    return found


def _placed(logs: Logs, border: int) -> int:
    """Returns where, within MIN_SIDE nights of a border, the nights of each side are most alike.

    A side may come out shorter than MIN_SIDE: the search fills up a new level that was seen on
    fewer nights with some of the old one.
    """
    wild = _WILD * _noise(_residuals(logs, border))

    def unlike(place: int) -> float:
        return float(np.minimum(np.abs(_residuals(logs, place)), wild).sum())

    nearest = range(max(1, border - MIN_SIDE), min(len(logs) - 1, border + MIN_SIDE) + 1)
    return min(nearest, key=unlike)


def _residuals(logs: Logs, border: int) -> Logs:
    """Returns what each night is off the median of its side."""
    sides = logs[:border], logs[border:]
    return np.concatenate([side - np.median(side) for side in sides])


def _noise(residuals: Logs) -> float:
    """Returns the standard deviation of normal residuals, whatever a few outliers are."""
    return max(_OF_MEDIAN * float(np.median(np.abs(residuals))), _LEAST_NOISE)


def _tested(logs: Logs, borders: Sequence[int]) -> list[Step]:
    """Returns a step for each border, between its neighbours."""
    ends = [0, *borders, len(logs)]
    return [
        _step(logs[start:end], border - start, border, len(logs) - border)
        for start, border, end in zip(ends[:-2], borders, ends[2:], strict=True)
    ]


def _step(logs: Logs, border: int, index: int, seen: int) -> Step:
    """Returns the step at a border of some nights, which is ``index`` of all, ``seen`` nights ago.

    Its p-value is that of a t test over the share of its look. A border is looked at anew each
    night, first with MIN_SIDE nights after it; the look with k has a share of 1/k³ over the sum of
    1/k³ from MIN_SIDE on. The shares of all looks, however many, sum to one, so that a border
    without a step passes any of them with a probability of at most the rate.

    Source of spending an error on looks: Lan and DeMets, Discrete sequential boundaries for
    clinical trials, Biometrika 70 (1983).
    """
    from scipy.special import zeta

    before, after = logs[:border], logs[border:]
    low, high = float(np.median(before)), float(np.median(after))
    ratio = math.exp(high - low)
    if not (_has_come(before - low, high - low) and _has_come(high - after, high - low)):
        return Step(index, ratio, 1.0)
    bound = _WINSOR * _noise(_residuals(logs, border))
    p_value = _t_test(
        np.clip(before, low - bound, low + bound), np.clip(after, high - bound, high + bound)
    )
    share = seen**-_POWER / float(zeta(_POWER, MIN_SIDE))
    return Step(index, ratio, min(p_value / share, 1.0))


def _has_come(moved: Logs, size: float) -> bool:
    """Returns whether a side is a level: at most one night in four of it is on the other one.

    ``moved`` is how far each night is on the way to the other level, which is ``size`` away.
    """
    beyond = moved / size > _FAR if size else np.ones(len(moved), bool)
    return int(beyond.sum()) <= len(moved) // 4


def _t_test(old: Logs, new: Logs) -> float:
    """Returns the two-sided p-value of Student's t test for two means with one variance, which is
    pooled.

    Source: Snedecor and Cochran, Statistical Methods, on two independent samples; on winsorised
    ones, Tukey and McLaughlin, Less vulnerable confidence and significance procedures for location
    based on a single sample, Sankhya A 25 (1963).
    """
    from scipy.stats import t

    freedom = len(old) + len(new) - 2
    squares = float(((old - old.mean()) ** 2).sum() + ((new - new.mean()) ** 2).sum())
    spread = max(math.sqrt(squares / freedom), _LEAST_NOISE)
    error = spread * math.sqrt(1 / len(old) + 1 / len(new))
    return 2 * float(t.sf(abs(float(new.mean() - old.mean())) / error, freedom))
