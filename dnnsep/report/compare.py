"""Judges case by case whether one set of results is faster or slower than another.

The method, from the inside out:

1. Only rounds with a quiet machine in the same state count, and a visit whose rounds agree gives
   one value (alike.py).
2. A side's estimate of a case is the mean of its visits' logarithms, trimmed and with a variance
   moderated by those of the side's other cases, as ``ab`` does; the difference between the sides
   gets Welch's degrees of freedom (ab.py).
3. What is tested is not that there is any difference, but that it is beyond the threshold
   (McCarthy and Smyth 2009), and the p-values are adjusted for the number of cases (Benjamini and
   Hochberg 1995).

So a case is called faster or slower only where its whole interval lies beyond the threshold, and
that only where the interval is no wider than a factor 1.5. It is the same where the interval lies
within the threshold on both sides. Of results made beside other work more is asked (alike.py).
Everything else is unsure, with a reason and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from dnnsep.report.ab import Estimate, adjusted, moderated
from dnnsep.report.alike import MIN_VISITS, Pair, Side, quietest
from dnnsep.sweep.results import Key, Record, Results

Normalize = Literal["time", "roof"]

_SIGNIFICANCE = 0.05

# An interval whose ends are further apart than this factor says that something else went on.
_WIDEST = 1.5

_REPEAT = (
    "measure both again with twice the visits (`--visits`, 8 or more), or compare the two versions "
    "side by side with `dnnsep ab`"
)
_QUIETER = (
    "stop the other work and measure both again with `--visits 8` or more, or compare the two "
    "versions side by side with `dnnsep ab`"
)


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
    and new where they differ. ``p_value`` is that of the difference being within what is called,
    adjusted for the number of cases. ``advice`` says what to do about an unsure case.
    """

    key: Key
    name: str | None
    verdict: Verdict
    reason: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    impls: tuple[list[str], list[str]] | None = None
    p_value: float | None = None
    advice: str = ""


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
    # One measure of quiet for both sides, so that it favours none; between machines each its own.
    sides = (base.records, new.records)
    if how == "time":
        sides = ([*base.records, *new.records],) * 2
    best = (quietest(sides[0]), quietest(sides[1]))
    keys = list(dict.fromkeys([*after, *before]))
    known = {key: _unmeasured(key, before.get(key), after.get(key), how) for key in keys}
    pairs = {
        key: Pair.of(
            Side(before[key], best[0][before[key].threads]),
            Side(after[key], best[1][after[key].threads]),
            how == "roof",
            thresholds(key) if thresholds else threshold,
        )
        for key in keys
        if known[key] is None
    }
    measured = dict(zip(pairs, _judged(list(pairs.values())), strict=True))
    return [known[key] or measured[key] for key in keys]


def paired(
    before: Mapping[str, Results], after: Mapping[str, Results]
) -> dict[str, tuple[Results, Results]]:
    """Returns both sides of each machine, in the new side's order, then those of the base alone.

    A machine on one side only has no records on the other, so that its cases are new or missing.
    """
    pairs = {}
    for name in dict.fromkeys([*after, *before]):
        known = after.get(name) or before[name]
        nothing = known.model_copy(update={"records": []})
        pairs[name] = (before.get(name, nothing), after.get(name, nothing))
    return pairs


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


def _unmeasured(
    key: Key, base: Record | None, new: Record | None, how: Normalize
) -> Comparison | None:
    """Returns what is said of a case that has no figures to compare; None where it has them."""
    record = new or base
    assert record is not None

    def said(verdict: Verdict, reason: str) -> Comparison:
        return Comparison(key, record.name, verdict, reason)

    if new is None or base is None:
        side = "base" if new is None else "new"
        return said(Verdict.MISSING if new is None else Verdict.NEW, f"in {side} only")
    if new.status == "incorrect":
        return said(Verdict.INCORRECT, new.reason or "incorrect")
    if new.time is None:
        if base.time is None and base.status == new.status:
            return said(Verdict.SAME, f"{new.status} in both: {new.reason}")
        return said(Verdict.FAILED, f"{new.status}: {new.reason}")
    if base.time is None:
        return said(Verdict.FIXED, f"was {base.status}: {base.reason}")
    if how == "roof" and None in (base.roof_share, new.roof_share):
        return said(Verdict.UNSURE, "a side has no roof, or one that it exceeds")
    return None


def _judged(pairs: Sequence[Pair]) -> list[Comparison]:
    """Returns what is said of each pair, in order."""
    estimates: dict[Key, Estimate] = {}
    for repeated in (True, False):  # the spread of rounds says nothing about that of visits
        group = [pair for pair in pairs if pair.enough and pair.repeated is repeated]
        base, new = (moderated([pair.samples[side] for pair in group]) for side in (0, 1))
        for pair, before, after in zip(group, base, new, strict=True):
            estimates[pair.new.record.key] = after.over(before)
    limits = {pair.new.record.key: math.log1p(pair.least_called) for pair in pairs}
    p_values = adjusted([found.p_within(limits[key]) for key, found in estimates.items()])
    by_key = dict(zip(estimates, p_values, strict=True))
    return [_comparison(pair, estimates, by_key) for pair in pairs]


def _comparison(
    pair: Pair, estimates: Mapping[Key, Estimate], p_values: Mapping[Key, float]
) -> Comparison:
    """Returns what is said of a pair, ``p_values`` being the adjusted ones."""
    base, new = pair.base.record, pair.new.record
    estimate = estimates.get(new.key)
    impls = (base.impls, new.impls) if base.impls != new.impls else None
    if estimate is None:
        verdict, reason, advice = Verdict.UNSURE, *_too_few(pair)
        return Comparison(
            new.key, new.name, verdict, reason, pair.ratio, impls=impls, advice=advice
        )
    p_value = p_values[new.key]
    verdict = _verdict(pair, estimate, p_value)
    reason, advice = _reason(pair, estimate, p_value, verdict, len(p_values))
    figures = (estimate.ratio, *estimate.interval)
    return Comparison(new.key, new.name, verdict, reason, *figures, impls, p_value, advice)


def _verdict(pair: Pair, estimate: Estimate, p_value: float) -> Verdict:
    low, high = estimate.interval
    # An adjusted p-value this low puts the whole interval beyond what is called.
    if p_value < _SIGNIFICANCE and high / low <= _WIDEST:
        return Verdict.SLOWER if estimate.mean > 0 else Verdict.FASTER
    if 1 / (1 + pair.same_within) <= low and high <= 1 + pair.same_within:
        return Verdict.SAME
    return Verdict.UNSURE


def _reason(
    pair: Pair, estimate: Estimate, p_value: float, verdict: Verdict, cases: int
) -> tuple[str, str]:
    """Returns why the verdict is what it is and, where it is unsure, what to do."""
    low, high = estimate.interval
    within, beyond = _percent(pair.same_within), _percent(pair.least_called)
    if verdict is Verdict.SAME:
        return f"within {within}", ""
    if verdict is not Verdict.UNSURE:
        return f"by more than {beyond}, adjusted p = {p_value:.1g}", ""
    if not pair.repeated:
        return _too_few(pair)
    if high / low > _WIDEST:
        if pair.loaded:
            return f"load: the interval is wider than a factor {_WIDEST}", _QUIETER
        return f"the visits disagree: the interval is wider than a factor {_WIDEST}", _REPEAT
    if pair.loaded:
        return f"load: the interval is neither within {within} nor beyond {beyond}", _QUIETER
    if estimate.p_within(math.log1p(pair.least_called)) < _SIGNIFICANCE:
        return f"maybe by chance: not significant after correction for {cases} cases", _REPEAT
    return f"the interval reaches across {beyond}", _REPEAT


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _too_few(pair: Pair) -> tuple[str, str]:
    """Returns what is said where too few visits are comparable, and what to do."""
    load, advice = ("load: ", _QUIETER) if pair.loaded else ("", _REPEAT)
    called = (
        f"only a difference beyond {_percent(pair.least_called)} is called"
        if pair.enough
        else "nothing is called"
    )
    return (
        f"{load}fewer than {MIN_VISITS} visits on a side with a quiet machine in the same state "
        f"and rounds that agree: {called}"
    ), advice


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
