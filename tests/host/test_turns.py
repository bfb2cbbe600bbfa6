"""What calls taken in turns say, on a clock that only the calls move."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat

import pytest

from dnnsep.host.turns import Turns, affordable, short_turns, take_turns


class Clock:
    """A clock, and calls that move it on by the times that they are given; the last one stays."""

    def __init__(self) -> None:
        self.now = 0.0
        self.made: list[int] = []

    def __call__(self) -> float:
        return self.now

    def call(self, *seconds: float) -> Callable[[], None]:
        number, times = len(self.made), chain(seconds, repeat(seconds[-1]))
        self.made.append(0)

        def run() -> None:
            self.made[number] += 1
            self.now += next(times)

        return run


def _turns(*calls: list[float]) -> Turns:
    return Turns(tuple(zip(*calls, strict=True)))


@pytest.mark.parametrize(
    ("other", "best"),
    [
        ([0.97] * 6, 1),
        ([0.995] * 6, 0),
        ([1.2] * 6, 0),
        ([0.97] * 5 + [3.0], 1),  # a disturbed round
        ([0.97] * 4 + [1.0] * 2, 0),
        ([0.5] * 3 + [1.0] * 3, 0),
    ],
)
def test_another_call_must_be_faster_in_most_rounds(other: list[float], best: int) -> None:
    turns = _turns([1.0] * 6, other)
    assert turns.quiet
    assert turns.best(0.01) == best


def test_the_fastest_of_several_is_taken() -> None:
    assert _turns([1.0] * 4, [0.95] * 4, [0.9] * 4, [0.93] * 4).best(0.01) == 2


def test_rounds_are_compared_each_for_itself() -> None:
    """The machine may become slower from round to round, by half in all."""
    slower = [1.0, 1.05, 1.1, 1.14]
    turns = _turns(slower, [0.97 * t for t in slower])
    assert turns.ratio(0, 1) == pytest.approx(1 / 0.97)
    assert turns.seconds(0) == pytest.approx(1.075)
    assert turns.best(0.01) == 1


def test_nothing_is_told_on_a_machine_that_is_not_quiet_but_what_is_plain() -> None:
    first = [1.0, 1.3, 1.0, 1.3, 1.2, 1.0]
    assert not _turns(first, first).quiet
    assert _turns(first, [0.9 * t for t in first]).best(0.01) == 0
    assert _turns(first, [0.8 * t for t in first]).best(0.01) == 1
    assert _turns(first, [0.8 * t for t in first[:-1]] + [0.99]).best(0.01) == 0
    assert _turns([1.0, 1.0, 1.0, 1.0, 1.0, 5.0], [1.0] * 6).quiet  # one disturbed round


def test_each_round_takes_the_fastest_call_of_a_visit() -> None:
    clock = Clock()
    calls = [clock.call(3.0, 1.0, 2.0, 1.0), clock.call(2.0)]
    turns = take_turns(calls, 2, 5.0, clock=clock)
    assert turns is not None
    assert turns.rounds == ((1.0, 2.0), (1.0, 2.0))


@pytest.mark.parametrize("seconds", [1e-5, 1e-3, 0.01, 0.024])
def test_a_short_measurement_ends_in_time(seconds: float) -> None:
    clock = Clock()
    turns = short_turns([clock.call(seconds) for _ in range(4)], 0.3, clock)
    assert turns is not None
    assert 2 <= len(turns.rounds) <= 6
    assert all(time == pytest.approx(seconds) for row in turns.rounds for time in row)
    assert clock.now <= 0.3 + seconds
    assert len(set(clock.made)) <= 2  # each about as often


def test_a_very_short_call_is_not_made_for_longer_than_it_is_worth() -> None:
    clock = Clock()
    assert short_turns([clock.call(1e-5), clock.call(1e-5)], 0.3, clock) is not None
    assert clock.now < 0.02


def test_what_takes_too_long_is_not_compared() -> None:
    clock = Clock()
    assert affordable(clock.call(0.049), 0.3, clock) == 2
    assert affordable(clock.call(0.06), 0.3, clock) == 1
    assert affordable(clock.call(0.001), 0.305, clock) == 101
    assert short_turns([clock.call(0.1), clock.call(0.1)], 0.3, clock) is None


def test_a_round_that_is_not_over_in_time_does_not_count() -> None:
    clock = Clock()
    calls = [clock.call(0.01), clock.call(0.01)]
    turns = take_turns(calls, 9, 0.01, end=0.055, clock=clock)
    assert turns is not None
    assert len(turns.rounds) == 2
