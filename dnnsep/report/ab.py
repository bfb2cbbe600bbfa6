"""Whether one version is faster or slower than another, from their pairs of bursts.

The method, from the inside out:

1. A visit gives one value: the median over its quiet pairs of log(new / base). Pairs of one visit
   share two processes and their buffers, so they are not independent; visits are.
2. A case's estimate is the mean of its visits' values without the fifth at either end (with eight
   visits or more), and its variance that of a trimmed mean, from the winsorized values (Tukey and
   McLaughlin 1963): now and then a process is unlucky by 20 % for as long as it lives.
3. With some ten visits each case's variance is itself uncertain, but a run has many cases. Their
   variances are moderated as in Smyth 2004 (limma; "Linear models and empirical Bayes methods for
   assessing differential expression"): a scaled inverse chi-square prior is fitted to all cases'
   variances by the moments of their logarithms, each variance is replaced by its posterior mean,
   and the t statistic gains the prior's degrees of freedom.
4. The p-values of a run are adjusted for the number of its cases (Benjamini and Hochberg 1995): of
   the cases called in a run at most 2 % are to be false, and where nothing differs, any at all in
   at most 2 % of runs.

A case is called faster or slower when its adjusted p-value is below 2 % (its 95 % interval then
excludes 1) and its estimate is beyond the threshold; it is the same when the interval lies within
the threshold on both sides; everything else is unsure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from dnnsep.measure.stats import Control
from dnnsep.sweep.pairs import PairResults, Trial

_SIGNIFICANCE = 0.02
_CONFIDENCE = 0.95

# The share of a case's visits that is left out at either end, and from how many visits on.
_TRIM = 0.2
_TRIMMED_FROM = 8

# A visit with fewer quiet pairs does not count, and a case with fewer such visits is unsure.
_MIN_QUIET_PAIRS = 3
_MIN_VISITS = 2

# No visits agree better than this share by anything but chance; times are rounded to 0.01 us.
_LEAST_SPREAD = 5e-4
_ROUNDING_US = 0.005

# From fewer cases a prior cannot be fitted.
_MIN_POOL = 3


class Verdict(str, Enum):
    """What is said of a case; ``value`` is how it is printed."""

    SAME = "same"
    FASTER = "faster"
    SLOWER = "slower"
    UNSURE = "unsure"
    INCORRECT = "incorrect"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True)
class Estimate:
    """A mean of logarithms: its standard error with its degrees of freedom.

    The logarithms are of ratios (new over base) or, until ``over`` makes a ratio of two estimates,
    of times.
    """

    mean: float
    error: float
    freedom: float

    @property
    def ratio(self) -> float:
        """New over base: above 1 is slower."""
        return math.exp(self.mean)

    @property
    def interval(self) -> tuple[float, float]:
        """The ratio's 95 % interval."""
        from scipy.stats import t

        reach = float(t.ppf(0.5 + _CONFIDENCE / 2, self.freedom)) * self.error
        return math.exp(self.mean - reach), math.exp(self.mean + reach)

    @property
    def p_value(self) -> float:
        """Two-sided, of there being no difference; of this case alone."""
        return self.p_within(0.0)

    def p_within(self, limit: float) -> float:
        """Two-sided, of the true mean being at most ``limit`` from 0; of this case alone.

        It is below 5 % just where the 95 % interval lies wholly beyond the limit (McCarthy and
        Smyth 2009, "Testing significance relative to a fold-change threshold is a TREAT").
        """
        from scipy.stats import t

        return min(1.0, float(2 * t.sf((abs(self.mean) - limit) / self.error, self.freedom)))

    def over(self, base: Estimate) -> Estimate:
        """The estimate of this mean less that of ``base``, the two being independent (Welch)."""
        variances = self.error**2, base.error**2
        shares = variances[0] ** 2 / self.freedom + variances[1] ** 2 / base.freedom
        total = sum(variances)
        return Estimate(self.mean - base.mean, math.sqrt(total), total**2 / shares)


@dataclass(frozen=True)
class Finding:
    """A trial with what is said of it; ``base_us`` and ``new_us`` are medians over its visits.

    ``p_value`` is the adjusted one. All figures are None where the trial was not measured, and the
    estimate and its p-value where there were too few quiet visits.
    """

    trial: Trial
    verdict: Verdict
    reason: str
    base_us: float | None = None
    new_us: float | None = None
    estimate: Estimate | None = None
    p_value: float | None = None

    @property
    def impl_changed(self) -> bool:
        """Whether both versions were measured and do not run the same implementations."""
        return self.estimate is not None and self.trial.base_impls != self.trial.new_impls


@dataclass(frozen=True)
class Geomean:
    """The geometric mean of the ratios of ``count`` trials of a group."""

    group: str
    count: int
    estimate: Estimate


@dataclass(frozen=True)
class Sample:
    """The values of a case's visits: log(new / base) by visit, and the time of a call."""

    values: Mapping[int, float]
    us: float

    @property
    def trimmed(self) -> int:
        """How many values are left out at either end."""
        return int(_TRIM * len(self.values)) if len(self.values) >= _TRIMMED_FROM else 0

    @property
    def freedom(self) -> int:
        """The degrees of freedom of the variance."""
        return len(self.values) - 2 * self.trimmed - 1

    @property
    def mean(self) -> float:
        """The trimmed mean."""
        ordered = sorted(self.values.values())
        return float(np.mean(ordered[self.trimmed : len(ordered) - self.trimmed]))

    @property
    def winsorized(self) -> dict[int, float]:
        """The values, those left out of the mean replaced by the nearest that is not."""
        ordered = sorted(self.values.values())
        low, high = ordered[self.trimmed], ordered[-1 - self.trimmed]
        return {visit: min(max(value, low), high) for visit, value in self.values.items()}

    @property
    def variance(self) -> float:
        """Of one visit's value, such that over the number of visits it is the mean's."""
        kept = 1 - 2 * self.trimmed / len(self.values)
        found = float(np.var(list(self.winsorized.values()), ddof=1)) / kept**2
        return max(found, _LEAST_SPREAD**2, (_ROUNDING_US / self.us) ** 2)


def judge(results: PairResults, threshold: float) -> list[Finding]:
    """What is said of each trial; ``threshold`` is the least difference that counts, a share."""
    quietest = results.quietest()
    samples = {t.key: sample_of(t, quietest) for t in results.trials if t.status == "ok"}
    counted = {key: s for key, s in samples.items() if s and len(s.values) >= _MIN_VISITS}
    estimates = dict(zip(counted, moderated(list(counted.values())), strict=True))
    p_values = adjusted([estimate.p_value for estimate in estimates.values()])
    by_key = dict(zip(estimates, p_values, strict=True))
    return [
        _finding(trial, estimates.get(trial.key), by_key.get(trial.key), threshold)
        for trial in results.trials
    ]


def sample_of(trial: Trial, quietest: Mapping[int, Control]) -> Sample | None:
    """The values of a trial's visits with enough quiet pairs; None where there is none."""
    values, times = {}, []
    for visit in trial.visits:
        pairs = [pair for pair in visit.pairs if pair.quiet(quietest[trial.threads])]
        if len(pairs) >= _MIN_QUIET_PAIRS:
            values[visit.visit] = float(np.median([math.log(p.new_us / p.base_us) for p in pairs]))
            times += [pair.base_us for pair in pairs]
    return Sample(values, float(np.median(times))) if values else None


def moderated(samples: Sequence[Sample]) -> list[Estimate]:
    """Each sample's estimate, its variance moderated by those of all."""
    variances = np.array([sample.variance for sample in samples])
    freedoms = np.array([sample.freedom for sample in samples], float)
    prior, prior_freedom = _prior(variances, freedoms)
    found = []
    for sample, variance, freedom in zip(samples, variances, freedoms, strict=True):
        if math.isinf(prior_freedom):
            posterior = prior
        else:
            total = prior_freedom + freedom
            posterior = (prior_freedom * prior + freedom * variance) / total
        # Together the cases know no more than all their degrees of freedom.
        known = min(prior_freedom + freedom, float(freedoms.sum()))
        error = math.sqrt(posterior / len(sample.values))
        found.append(Estimate(sample.mean, error, known))
    return found


def _prior(variances: np.ndarray, freedoms: np.ndarray) -> tuple[float, float]:
    """The prior's variance and degrees of freedom (Smyth 2004, section 6.2)."""
    from scipy.special import digamma, polygamma

    if len(variances) < _MIN_POOL:
        return 0.0, 0.0
    logs = np.log(variances) - digamma(freedoms / 2) + np.log(freedoms / 2)
    excess = float(np.var(logs, ddof=1) - np.mean(polygamma(1, freedoms / 2)))
    if excess <= 0:
        return math.exp(float(np.mean(logs))), math.inf
    half = _inverse_trigamma(excess)
    return math.exp(float(np.mean(logs) + digamma(half)) - math.log(half)), 2 * half


def _inverse_trigamma(value: float) -> float:
    """Where the trigamma function has this value, by bisection of its logarithm."""
    from scipy.optimize import brentq
    from scipy.special import polygamma

    low, high = 1e-4, 1e8
    value = min(max(value, float(polygamma(1, high))), float(polygamma(1, low)))
    found = brentq(
        lambda x: float(polygamma(1, math.exp(x))) - value, math.log(low), math.log(high)
    )
    return math.exp(float(found))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Each p-value adjusted for how many there are (Benjamini and Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)] if p_values else []


def _finding(
    trial: Trial, estimate: Estimate | None, p_value: float | None, threshold: float
) -> Finding:
    if trial.status != "ok":
        return Finding(trial, Verdict(trial.status), trial.reason or "")
    base_us, new_us = (
        float(np.median([np.median([getattr(p, side) for p in v.pairs]) for v in trial.visits]))
        for side in ("base_us", "new_us")
    )
    if estimate is None or p_value is None:
        reason = f"fewer than {_MIN_VISITS} visits with a quiet machine"
        return Finding(trial, Verdict.UNSURE, reason, base_us, new_us)
    verdict, reason = _verdict(estimate, p_value, threshold)
    return Finding(trial, verdict, reason, base_us, new_us, estimate, p_value)


def _verdict(estimate: Estimate, p_value: float, threshold: float) -> tuple[Verdict, str]:
    limit = math.log1p(threshold)
    beyond, (low, high) = abs(estimate.mean) > limit, estimate.interval
    if beyond and p_value < _SIGNIFICANCE:
        verdict = Verdict.SLOWER if estimate.mean > 0 else Verdict.FASTER
        return verdict, f"by more than {100 * threshold:g} %, p = {p_value:.1g}"
    if math.exp(-limit) <= low and high <= math.exp(limit):
        return Verdict.SAME, f"within {100 * threshold:g} %"
    if beyond:
        return (
            Verdict.UNSURE,
            f"maybe by chance, adjusted p = {p_value:.1g}",
        )
    return Verdict.UNSURE, f"the interval reaches beyond {100 * threshold:g} %"


def geomeans(results: PairResults) -> list[Geomean]:
    """The geometric mean of each group's ratios.

    Its spread is that of the group's mean from visit to visit, which holds what all cases of a
    visit have in common.
    """
    quietest = results.quietest()
    groups: dict[str, list[Sample]] = {}
    for trial in results.trials:
        sample = sample_of(trial, quietest) if trial.status == "ok" else None
        if sample is not None and len(sample.values) >= _MIN_VISITS:
            groups.setdefault(trial.group, []).append(sample)
    return [Geomean(group, len(found), _mean_of(found)) for group, found in groups.items()]


def _mean_of(samples: Sequence[Sample]) -> Estimate:
    """The mean of the samples' means."""
    apart: dict[int, list[float]] = {}
    for sample in samples:
        kept = 1 - 2 * sample.trimmed / len(sample.values)
        for visit, value in sample.winsorized.items():
            apart.setdefault(visit, []).append((value - sample.mean) / kept)
    by_visit = [float(np.mean(values)) for values in apart.values()]
    spread = max(float(np.std(by_visit, ddof=1)), _LEAST_SPREAD / math.sqrt(len(samples)))
    freedom = min(sample.freedom for sample in samples)
    mean = float(np.mean([sample.mean for sample in samples]))
    return Estimate(mean, spread / math.sqrt(len(by_visit)), freedom)


FAIL_ON = ("slower", "faster", "unsure", "impl-changed", "incorrect", "failed", "refused")


def failures(findings: Sequence[Finding], fail_on: Sequence[str]) -> list[Finding]:
    """Those with a verdict that ``fail_on`` names, or, for ``impl-changed``, with other impls."""
    return [
        f
        for f in findings
        if f.verdict.value in fail_on or (f.impl_changed and "impl-changed" in fail_on)
    ]
