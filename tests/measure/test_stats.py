from __future__ import annotations

import numpy as np
import pytest

from dnnsep.measure.stats import Stats, geomean, median_interval
from tests.sweep.samples import rounds_of


def test_stats_of_rounds() -> None:
    stats = Stats.of(rounds_of([[4.0, 1.0, 3.0], [2.0], [5.0, 9.0, 6.0]]))
    assert stats.median_us == 3.0  # of 3, 2 and 6: a round counts once, however many calls it has
    assert (stats.q25_us, stats.q75_us) == (2.5, 5.5)
    assert (stats.min_us, stats.count, stats.rounds) == (1.0, 7, 3)
    assert stats.spread == pytest.approx(0.5)
    assert stats.low_us is None
    assert stats.precision is None


def test_the_interval_is_of_order_statistics() -> None:
    assert median_interval([1, 2, 3, 4, 5]) is None
    assert median_interval(list(range(1, 7))) == (1, 6)
    assert median_interval(list(range(1, 11))) == (2, 9)
    stats = Stats.of(rounds_of([[float(i)] for i in range(1, 11)]))
    assert (stats.low_us, stats.median_us, stats.high_us) == (2.0, 5.5, 9.0)
    assert stats.precision == pytest.approx(3.5 / 5.5)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        interval = median_interval(list(rng.exponential(size=12)))
        assert interval is not None
        held += interval[0] <= np.log(2) <= interval[1]
    assert 950 <= held <= 1000


def test_geomean() -> None:
    assert geomean([2.0, 8.0]) == pytest.approx(4.0)
