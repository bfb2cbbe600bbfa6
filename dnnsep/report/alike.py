"""Which rounds of two records can be compared with each other, and what they come to.

On a shared machine a time says as much about the neighbours as about the code. So only rounds with
a quiet machine in the same state are compared, by their fastest calls relative to the control loop,
and a visit counts only where its rounds agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dnnsep.measure.stats import Control, Round
from dnnsep.report.ab import Sample
from dnnsep.sweep.results import Record

# Controls are moments beside a round. Where most of a visit's rounds have a disturbed one, others
# were there in the rest too, between the controls.
_MOSTLY = 0.5

# Processes that take turns on a core disturb calls but not a short control. On visits beside quiet
# controls the median round was at most 1.08 times the low ones, or else 1.9 to 14 times them.
_AGREEING = 1.2

# From this share of disturbed rounds on a record counts as made under load.
_LOADED = 0.25

# A visit counts by this quantile of its rounds. What others add to a round is never negative, so
# the low ones are nearest to the truth; the least of all would depend on how many there are.
_LOW = 0.25

# Visits are what counts as independent; from fewer values than this nothing is estimated.
MIN_VISITS = 4

# With fewer visits the state the machine happens to be in passes for an effect; on a shared
# virtual machine, 30 %. Only a difference beyond any such state is called then.
_UNREPEATED_THRESHOLD = 0.5

# Beside other work all visits of one side may be off alike, which their spread does not show: on a
# shared virtual machine, medians moved by 15 % between sweeps. It may also hide a difference, so
# that only half the threshold counts as the same then.
_LOADED_THRESHOLD = 0.15


@dataclass(frozen=True)
class Side:
    """A record with the best that each control was on its machine."""

    record: Record
    best: Control

    def quiet(self, turn: Round) -> bool:
        """Returns whether others left the cores alone on both sides of a round."""
        return all(control.quiet(self.best) for control in (turn.before, turn.after))

    @property
    def disturbed(self) -> float:
        """Returns the share of the rounds that are not quiet."""
        return float(np.mean([not self.quiet(turn) for turn in self.record.rounds]))

    @property
    def loaded(self) -> bool:
        """Returns whether the record was made beside other work, by its warnings or controls."""
        warned = any(warning.startswith("load:") for warning in self.record.warnings)
        return warned or self.disturbed >= _LOADED

    def counted(self, near: bool) -> list[Round]:
        """Returns the quiet rounds with the cores near each other all along, or far all along.

        Of visits that were mostly disturbed there are none, nor of those whose rounds disagree.
        """
        visits: dict[int, list[Round]] = {}
        for turn in self.record.rounds:
            visits.setdefault(turn.visit, []).append(turn)
        counted: list[Round] = []
        for rounds in visits.values():
            quiet = [turn for turn in rounds if self.quiet(turn)]
            alike = [
                turn
                for turn in quiet
                if all(control.near(self.best) is near for control in (turn.before, turn.after))
            ]
            if len(quiet) >= _MOSTLY * len(rounds) and _agree(alike):
                counted += alike
        return counted


def _value(turn: Round) -> float:
    """Returns the fastest call over the time of the multiply-adds beside the round.

    Of these the faster ones count, since a slower clock slows both alike.
    """
    return min(turn.calls_us) / min(turn.before.busy_us, turn.after.busy_us)


def _agree(rounds: Sequence[Round]) -> bool:
    """Returns whether a visit's rounds come to about the same, so that its value can be trusted."""
    values = [_value(turn) for turn in rounds]
    return not values or float(np.median(values)) <= _AGREEING * float(np.quantile(values, _LOW))


def quietest(records: Sequence[Record]) -> dict[int, Control]:
    """Returns for each number of threads the best that each time of a control was in any record."""
    controls: dict[int, list[Control]] = {}
    for record in records:
        of_record = (control for turn in record.rounds for control in (turn.before, turn.after))
        controls.setdefault(record.threads, []).extend(of_record)
    return {threads: Control.best(group) for threads, group in controls.items() if group}


def _alike(base: Side, new: Side) -> tuple[list[Round], list[Round]]:
    """Returns both sides' quiet rounds, with the cores near each other or with them far apart.

    Of these two states it is the one that was met on more visits, counted on the side that has
    fewer of them.
    """
    pairs = [(base.counted(near), new.counted(near)) for near in (True, False)]
    return max(pairs, key=lambda pair: min(map(_visits, pair)))


def _visits(rounds: Iterable[Round]) -> int:
    """Returns on how many visits the rounds were made."""
    return len({turn.visit for turn in rounds})


def _sample(side: Side, rounds: Sequence[Round], roof: bool, by_visit: bool) -> Sample:
    """Returns the logarithms of the visits' values, or of the rounds' if not ``by_visit``.

    Values are scaled to microseconds on the quiet machine, and for ``roof`` then divided by the
    time at the roof.
    """
    scale = time_scale = side.best.busy_us
    if roof and side.record.roof is not None:
        scale *= side.record.roof.gflops / side.record.flops
    groups: dict[int, list[float]] = {}
    for index, turn in enumerate(rounds):
        groups.setdefault(turn.visit if by_visit else index, []).append(_value(turn))
    values = {index: float(np.quantile(group, _LOW)) for index, group in groups.items()}
    logs = {index: float(np.log(scale * value)) for index, value in values.items()}
    return Sample(logs, time_scale * float(np.median(list(values.values()))))


@dataclass(frozen=True)
class Pair:
    """A case that both sides have figures of.

    ``visits`` is the fewer of the sides' comparable visits. ``samples`` are those of base and new:
    by visit where the case is ``repeated``, else by round, and of all rounds where there is too
    little to estimate from (``enough`` is false).
    """

    base: Side
    new: Side
    threshold: float
    visits: int
    samples: tuple[Sample, Sample]
    enough: bool

    @classmethod
    def of(cls, base: Side, new: Side, roof: bool, threshold: float) -> Pair:
        """Returns the pair with the samples of its comparable rounds."""
        rounds = _alike(base, new)
        least = min(map(_visits, rounds))
        enough = least >= MIN_VISITS or min(map(len, rounds)) >= MIN_VISITS
        before, after = rounds if enough else (base.record.rounds, new.record.rounds)
        by_visit = least >= MIN_VISITS
        samples = (
            _sample(base, before, roof, by_visit),
            _sample(new, after, roof, by_visit),
        )
        return cls(base, new, threshold, least, samples, enough)

    @property
    def repeated(self) -> bool:
        """Returns whether there are visits enough to know how they differ from each other."""
        return self.visits >= MIN_VISITS

    @property
    def loaded(self) -> bool:
        """Returns whether a side was made beside other work."""
        return self.base.loaded or self.new.loaded

    @property
    def least_called(self) -> float:
        """Returns the difference that a call's whole interval has to lie beyond, as a share."""
        if not self.repeated:
            return max(self.threshold, _UNREPEATED_THRESHOLD)
        return max(self.threshold, _LOADED_THRESHOLD) if self.loaded else self.threshold

    @property
    def same_within(self) -> float:
        """Returns the difference that the whole interval lies within where the case is the same."""
        return self.threshold / 2 if self.loaded else self.threshold

    @property
    def ratio(self) -> float:
        """Returns new over base by the samples' medians."""
        base, new = (np.median(list(found.values.values())) for found in self.samples)
        return math.exp(new - base)
