"""Whether one set of results is faster or slower than another, case by case. Reads results only.

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
    """What is said of a case; ``value`` is how it is printed."""

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
    """One case in both results. ``ratio`` is new over base, of times or of the roof's shares'
    inverses: above 1 is slower; [``low``, ``high``] its 95 % interval. ``impls`` holds both sides'
    where oneDNN picked other kernels."""

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
    """Compare every case of either side, the new one's order first.

    ``threshold`` is the least difference that counts, as a share; ``thresholds`` may give another
    for each case. ``how`` says whether times are compared or shares of the roof.
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
    """What is wanted, or else ``roof`` where the results are from different machines.

    Raises ValueError where that takes roofs and a side has none.
    """
    how = wanted or ("time" if same_machine(base, new) else "roof")
    if how == "roof" and not (base.roofs and new.roofs):
        raise ValueError("comparing shares of the roof needs results with measured roofs")
    return how


def same_machine(base: Results, new: Results) -> bool:
    """Whether times can be compared: the same CPU, as many cores, the same caches."""
    parts = ("cpu", "cpu_family_model", "isa", "cores", "logical_cpus", "caches")
    return all(base.fingerprint.get(part) == new.fingerprint.get(part) for part in parts)


def _compare(
    key: Key,
    base: Record | None,
    new: Record | None,
    threshold: float,
    how: Normalize,
    quiet: tuple[dict[int, Control], dict[int, Control]],
) -> Comparison:
    some = new or base
    assert some is not None
    name = some.name

    def say(verdict: Verdict, reason: str) -> Comparison:
        return Comparison(key, name, verdict, reason)

    if new is None or base is None:
        side = "base" if new is None else "new"
        return say(Verdict.MISSING if new is None else Verdict.NEW, f"in {side} only")
    if new.status == "incorrect":
        return say(Verdict.INCORRECT, new.reason or "incorrect")
    if new.time is None:
        if base.time is None and base.status == new.status:
            return say(Verdict.SAME, f"{new.status} in both: {new.reason}")
        return say(Verdict.FAILED, f"{new.status}: {new.reason}")
    if base.time is None:
        return say(Verdict.FIXED, f"was {base.status}: {base.reason}")
    impls = (base.impls, new.impls) if base.impls != new.impls else None
    states = [quietest[some.threads] for quietest in quiet]
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
    ratio: float
    low: float
    high: float
    p_value: float


def _quietest(records: Sequence[Record]) -> dict[int, Control]:
    """By threads, the best that each control was in any of the records."""
    controls: dict[int, list[Control]] = {}
    for record in records:
        seen = (control for turn in record.rounds for control in (turn.before, turn.after))
        controls.setdefault(record.threads, []).extend(seen)
    return {threads: Control.best(of) for threads, of in controls.items() if of}


def _like_rounds(
    base: Sequence[Round], new: Sequence[Round], base_quiet: Control, new_quiet: Control
) -> tuple[Sequence[Round], Sequence[Round]]:
    """Both sides' quiet rounds with the cores near each other, or with them far apart: whichever
    came on more visits of the side where they were fewer."""
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
    """A value for each visit, the median of its rounds', or, with too few visits, for each round.

    A round's value is its fastest call in units of the multiply-adds around it: what others on a
    shared machine add to a call is never negative, and the clock slows both alike.
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
    """New over base: the Hodges-Lehmann estimate (the median of all pairs' ratios), its 95 %
    interval from the same pairs, and the p-value of the Mann-Whitney rank test."""
    from scipy.stats import mannwhitneyu, norm

    ratios = sorted(after / before for before, after in product(base, new))
    pairs, values = len(ratios), len(base) + len(new)
    reach = norm.ppf(0.5 + _CONFIDENCE / 2) * math.sqrt(pairs * (values + 1) / 12)
    outside = max(1, round(pairs / 2 - reach))
    p_value = float(mannwhitneyu(base, new, alternative="two-sided").pvalue)
    return _Effect(float(np.median(ratios)), ratios[outside - 1], ratios[-outside], p_value)


def _judge(effect: _Effect, threshold: float, repeated: bool) -> tuple[Verdict, str]:
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
    """Those with a verdict that ``fail_on`` names, or, for ``impl-changed``, with other kernels.

    Raises ValueError naming the word that is not one of FAIL_ON.
    """
    for word in fail_on:
        if word not in FAIL_ON:
            raise ValueError(f"fail-on {word!r}: must be one of {', '.join(FAIL_ON)}")
    return [
        c
        for c in comparisons
        if c.verdict.value in fail_on or (c.impls is not None and "impl-changed" in fail_on)
    ]
