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

from dnnsep.sweep.results import Key, Record, Results
from dnnsep.sweep.stats import Round

Normalize = Literal["time", "roof"]

# A rank test of four visits against four reaches this only when they are all on one side.
_SIGNIFICANCE = 0.05
_CONFIDENCE = 0.95

# With fewer visits on a side no rank test of visits can be significant.
MIN_VISITS = 4

# How much longer than at best the control loops around a round may take: beyond, others had the
# cores, or part of each. And how much longer than at best a cache line may take from core to core
# for these to be near each other; there is nothing between near and far.
_MAX_BUSY = 1.15
_MAX_LOADS = 1.12
_MAX_HANDOVER = 2.0

# Within one visit the state the machine happens to be in passes for an effect; on a shared virtual
# machine, 30 %. Only a difference beyond any such state is called on fewer visits.
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
    return [
        _compare(key, before.get(key), after.get(key), limit(key), how)
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
    key: Key, base: Record | None, new: Record | None, threshold: float, how: Normalize
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
    before, after = _like_rounds(base, new, how)
    repeated = min(_visits(before), _visits(after)) >= MIN_VISITS
    if not repeated:
        before, after = base.rounds, new.rounds
    effect = _effect(_values(base, before, how, repeated), _values(new, after, how, repeated))
    verdict, reason = _judge(effect, threshold, repeated)
    return Comparison(key, name, verdict, reason, effect.ratio, effect.low, effect.high, impls)


@dataclass(frozen=True)
class _Effect:
    ratio: float
    low: float
    high: float
    p_value: float


def _like_rounds(
    base: Record, new: Record, how: Normalize
) -> tuple[Sequence[Round], Sequence[Round]]:
    """Both sides' rounds with the machine in the same state: the cores near each other or far.

    Of the two states the one in which the side with fewer visits has more of them. One measure for
    both sides, so that it favours none; between machines each has its own.
    """
    together = [*base.rounds, *new.rounds]
    first, second = (together, together) if how == "time" else (base.rounds, new.rounds)
    before, after = _by_state(base.rounds, first), _by_state(new.rounds, second)
    states = [(before[state], after[state]) for state in ("near", "far")]
    return max(states, key=lambda pair: min(_visits(pair[0]), _visits(pair[1])))


def _by_state(rounds: Sequence[Round], among: Sequence[Round]) -> dict[str, list[Round]]:
    """The rounds in which others left the machine alone, by the state it was in all along."""
    controls = [control for turn in among for control in (turn.before, turn.after)]
    busy = _MAX_BUSY * min(control.busy_us for control in controls)
    loads = _MAX_LOADS * min(control.loads_us for control in controls)
    near = _MAX_HANDOVER * min(_handovers(r)[0] for r in among)
    found: dict[str, list[Round]] = {"near": [], "far": []}
    for turn in rounds:
        low, high = _handovers(turn)
        if any(c.busy_us > busy or c.loads_us > loads for c in (turn.before, turn.after)):
            continue
        if high <= near:
            found["near"].append(turn)
        elif low > near:
            found["far"].append(turn)
    return found


def _handovers(turn: Round) -> tuple[float, float]:
    low, high = sorted(c.handover_ns or 0.0 for c in (turn.before, turn.after))
    return low, high


def _visits(rounds: Sequence[Round]) -> int:
    return len({r.visit for r in rounds})


def _values(record: Record, rounds: Sequence[Round], how: Normalize, repeated: bool) -> list[float]:
    """A value for each visit, or, where there are too few of these, for each round.

    The fastest call counts, in units of the multiply-adds' time around it: what the others on a
    shared machine add to a call is never negative, and the clock slows both alike.
    """
    scale = record.roof.gflops / record.flops if how == "roof" and record.roof else 1.0
    scale *= min(r.busy_us for r in record.rounds) if how == "roof" else 1.0
    groups: dict[int, list[float]] = {}
    for index, turn in enumerate(rounds):
        group = groups.setdefault(turn.visit if repeated else index, [])
        group.append(min(turn.calls_us) / turn.busy_us * scale)
    return [min(group) for group in groups.values()]


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
            f"fewer than {MIN_VISITS} visits with the machine in the same state on a side: "
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
