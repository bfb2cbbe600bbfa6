"""Judges case by case whether one set of results is faster or slower than another.

On a shared machine a time says as much about the neighbours as about the code. So only rounds with
the machine in the same state are compared, by their fastest calls relative to the control loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import Literal

import numpy as np

from dnnsep.measure.stats import Control, Round
from dnnsep.sweep.results import Key, Record, Results

Normalize = Literal["time", "roof"]

_SIGNIFICANCE = 0.05
_CONFIDENCE = 0.95

# A rank test of four visits against four is significant only when they are all on one side.
MIN_VISITS = 4

# With fewer visits the state the machine happens to be in passes for an effect; on a shared
# virtual machine, 30 %. Only a difference beyond any such state is called then.
_UNREPEATED_THRESHOLD = 0.5


class Verdict(str, Enum):
    """The judgement on a case; ``value`` is the word that is printed."""

    SAME = "same"
    FASTER = "faster"
    SLOWER = "slower"
    UNSURE = "unsure"
    INCORRECT = "incorrect"
    FAILED = "failed"
    FIXED = "fixed"
    MISSING = "missing"
    NEW = "new"


@dataclass(frozen=True)
class Comparison:
    """One case in both results.

    ``ratio`` is the new time over the base's, or the base's share of the roof over the new one:
    above 1 is slower. [``low``, ``high``] is its 95 % interval. ``impls`` holds the kernels of base
    and new where they differ.
    """

    key: Key
    name: str | None
    verdict: Verdict
    reason: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    impls: tuple[list[str], list[str]] | None = None


def compare(
    base: Results,
    new: Results,
    threshold: float = 0.05,
    how: Normalize = "time",
    thresholds: Callable[[Key], float] | None = None,
) -> list[Comparison]:
    """Compares every case of either side, in the new side's order, then those of the base alone.

    ``threshold`` is the least difference that counts, as a share of the base's time; ``thresholds``
    may give another for each case. ``how`` says whether times are compared or shares of the roof.
    """
    before = {record.key: record for record in base.records}
    after = {record.key: record for record in new.records}
    limit = thresholds or (lambda key: threshold)
    # One measure of quiet for both sides, so that it favours none; between machines each its own.
    sides = (base.records, new.records)
    if how == "time":
        sides = ([*base.records, *new.records],) * 2
    quiet = (_quietest(sides[0]), _quietest(sides[1]))
    return [
        _compare(key, before.get(key), after.get(key), limit(key), how, quiet)
        for key in dict.fromkeys([*after, *before])
    ]


def how_to_compare(base: Results, new: Results, wanted: Normalize | None = None) -> Normalize:
    """Returns what is wanted, or else ``roof`` where the results are from different machines.

    Raises ValueError where shares of the roof are to be compared and a side has no roofs.
    """
    how = wanted or ("time" if same_machine(base, new) else "roof")
    if how == "roof" and not (base.roofs and new.roofs):
        raise ValueError("comparing shares of the roof needs results with measured roofs")
    return how


def same_machine(base: Results, new: Results) -> bool:
    """Returns whether both sides have the same CPU, with as many cores and the same caches."""
    facts = ("cpu", "cpu_family_model", "isa", "cores", "logical_cpus", "caches")
    return all(base.fingerprint.get(fact) == new.fingerprint.get(fact) for fact in facts)


def _compare(
    key: Key,
    base: Record | None,
    new: Record | None,
    threshold: float,
    how: Normalize,
    quiet: tuple[dict[int, Control], dict[int, Control]],
) -> Comparison:
    record = new or base
    assert record is not None
    name = record.name

    def unmeasured(verdict: Verdict, reason: str) -> Comparison:
        return Comparison(key, name, verdict, reason)

    if new is None or base is None:
        side = "base" if new is None else "new"
        return unmeasured(Verdict.MISSING if new is None else Verdict.NEW, f"in {side} only")
    if new.status == "incorrect":
        return unmeasured(Verdict.INCORRECT, new.reason or "incorrect")
    if new.time is None:
        if base.time is None and base.status == new.status:
            return unmeasured(Verdict.SAME, f"{new.status} in both: {new.reason}")
        return unmeasured(Verdict.FAILED, f"{new.status}: {new.reason}")
    if base.time is None:
        return unmeasured(Verdict.FIXED, f"was {base.status}: {base.reason}")
    if how == "roof" and None in (base.roof_share, new.roof_share):
        return unmeasured(Verdict.UNSURE, "a side has no roof, or one that it exceeds")
    impls = (base.impls, new.impls) if base.impls != new.impls else None
    states = [quietest[record.threads] for quietest in quiet]
    before, after = _like_rounds(base.rounds, new.rounds, *states)
    repeated = min(_visits(before), _visits(after)) >= MIN_VISITS
    if not repeated:
        before, after = base.rounds, new.rounds
    effect = _effect(
        _values(base, before, how, states[0], repeated),
        _values(new, after, how, states[1], repeated),
    )
    verdict, reason = _judge(effect, threshold, repeated)
    return Comparison(key, name, verdict, reason, effect.ratio, effect.low, effect.high, impls)


@dataclass(frozen=True)
class _Effect:
    """A ratio with its 95 % interval, and the probability of such a one without a difference."""

    ratio: float
    low: float
    high: float
    p_value: float


def _quietest(records: Sequence[Record]) -> dict[int, Control]:
    """Returns for each number of threads the best that each time of a control was in any record."""
    controls: dict[int, list[Control]] = {}
    for record in records:
        of_record = (control for turn in record.rounds for control in (turn.before, turn.after))
        controls.setdefault(record.threads, []).extend(of_record)
    return {threads: Control.best(group) for threads, group in controls.items() if group}


def _like_rounds(
    base: Sequence[Round], new: Sequence[Round], base_quiet: Control, new_quiet: Control
) -> tuple[Sequence[Round], Sequence[Round]]:
    """Returns both sides' quiet rounds, with the cores near each other or with them far apart.

    Of these two states it is the one that was met on more visits, counted on the side that has
    fewer of them.
    """
    states = [
        tuple(
            [
                turn
                for turn in rounds
                if all(c.quiet(best) and c.near(best) is near for c in (turn.before, turn.after))
            ]
            for rounds, best in ((base, base_quiet), (new, new_quiet))
        )
        for near in (True, False)
    ]
    before, after = max(states, key=lambda pair: min(map(_visits, pair)))
    return before, after


def _visits(rounds: Sequence[Round]) -> int:
    return len({r.visit for r in rounds})


def _values(
    record: Record, rounds: Sequence[Round], how: Normalize, quietest: Control, repeated: bool
) -> list[float]:
    """Returns the median of the rounds' values for each visit; each round's if not ``repeated``.

    A round's value is its fastest call over the time of the multiply-adds around it: what others on
    a shared machine add to a call is never negative, and a slower clock slows both alike. It is
    scaled to microseconds on the quiet machine; for ``roof`` it is then divided by the time at the
    roof.
    """
    scale = quietest.busy_us
    if how == "roof" and record.roof is not None:
        scale *= record.roof.gflops / record.flops
    groups: dict[int, list[float]] = {}
    for index, turn in enumerate(rounds):
        group = groups.setdefault(turn.visit if repeated else index, [])
        group.append(min(turn.calls_us) / turn.busy_us * scale)
    return [float(np.median(group)) for group in groups.values()]


def _effect(base: Sequence[float], new: Sequence[float]) -> _Effect:
    """Estimates how many times as long the new side takes as the base.

    The ratio is the Hodges-Lehmann estimate (the median of all pairs' ratios), its 95 % interval is
    from the same pairs, and the p-value is that of the Mann-Whitney rank test.
    """
    from scipy.stats import mannwhitneyu, norm

    ratios = sorted(after / before for before, after in product(base, new))
    pairs, values = len(ratios), len(base) + len(new)
    reach = norm.ppf(0.5 + _CONFIDENCE / 2) * math.sqrt(pairs * (values + 1) / 12)
    outside = max(1, round(pairs / 2 - reach))
    p_value = float(mannwhitneyu(base, new, alternative="two-sided").pvalue)
    return _Effect(float(np.median(ratios)), ratios[outside - 1], ratios[-outside], p_value)


def _judge(effect: _Effect, threshold: float, repeated: bool) -> tuple[Verdict, str]:
    """Returns the verdict on an effect and its reason."""
    called_from = threshold if repeated else max(threshold, _UNREPEATED_THRESHOLD)
    if effect.p_value < _SIGNIFICANCE:
        if effect.ratio > 1 + called_from:
            return Verdict.SLOWER, f"by more than {threshold:.0%}, p = {effect.p_value:.2g}"
        if effect.ratio < 1 / (1 + called_from):
            return Verdict.FASTER, f"by more than {threshold:.0%}, p = {effect.p_value:.2g}"
    if 1 / (1 + threshold) <= effect.low and effect.high <= 1 + threshold:
        return Verdict.SAME, f"within {threshold:.0%}"
    if not repeated and not 1 / (1 + threshold) <= effect.ratio <= 1 + threshold:
        return Verdict.UNSURE, (
            f"fewer than {MIN_VISITS} visits with a quiet machine in the same state on a side: "
            f"only a difference of {_UNREPEATED_THRESHOLD:.0%} would be called"
        )
    return Verdict.UNSURE, f"the interval reaches beyond {threshold:.0%}"


FAIL_ON = ("slower", "faster", "unsure", "impl-changed", "incorrect", "failed", "missing")


def failures(comparisons: Sequence[Comparison], fail_on: Sequence[str]) -> list[Comparison]:
    """Returns the comparisons whose verdict ``fail_on`` names.

    ``impl-changed`` stands for those whose kernels differ. Raises ValueError naming a word that is
    not one of FAIL_ON.
    """
    for word in fail_on:
        if word not in FAIL_ON:
            raise ValueError(f"fail-on {word!r}: must be one of {', '.join(FAIL_ON)}")
    return [
        c
        for c in comparisons
        if c.verdict.value in fail_on or (c.impls is not None and "impl-changed" in fail_on)
    ]
