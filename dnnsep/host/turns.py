"""Calls that are timed in turns, and what that says of them: which is faster, or that it cannot be
told now because others use the machine.

Each round times every call for a moment, and only times of the same round are compared: what slows
the machine down for longer than a round slows all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from statistics import median
from time import perf_counter

Call = Callable[[], object]
Clock = Callable[[], float]

# Held by whoever measures: two measurements at once would disturb each other.
_lock = threading.Lock()
_of_thread = threading.local()

# How many blocks that slow calls down are entered now.
_slowed = [0]

# With fewer rounds nothing is said.
LEAST_ROUNDS = 2

# A short measurement has so many rounds, and makes so many calls on each visit to a call, or for so
# long if they are very short.
_ROUNDS = 6
_VISIT_CALLS, _VISIT_SECONDS = 30, 0.001

# One round in four may come out otherwise: it was disturbed.
_DISTURBED = 4

# On a quiet machine a call takes at most so many times its fastest round's time; where it takes
# longer, another call is faster only if it is by this much in every round.
_QUIET = 1.15


@contextmanager
def measuring() -> Iterator[None]:
    """Lets one thread at a time measure, and counts its seconds."""
    with _lock:
        start = perf_counter()
        try:
            yield
        finally:
            _of_thread.seconds = seconds_spent() + perf_counter() - start


def seconds_spent() -> float:
    """Returns what this thread has spent on measuring so far, and on compiling what it measured."""
    return getattr(_of_thread, "seconds", 0.0)


@contextmanager
def slowed() -> Iterator[None]:
    """Says that some calls take longer inside than they do otherwise: they are not compared."""
    _slowed[0] += 1
    try:
        yield
    finally:
        _slowed[0] -= 1


def are_slowed() -> bool:
    """Returns whether some calls take longer now than they do otherwise."""
    return _slowed[0] > 0


@dataclass(frozen=True)
class Turns:
    """Seconds that calls took: a row for each round, in it the fastest time of each call.

    The others are compared with the first call, which is preferred to them.
    """

    rounds: tuple[tuple[float, ...], ...]

    def seconds(self, number: int) -> float:
        """Returns the median of a call's rounds."""
        return median(row[number] for row in self.rounds)

    def ratio(self, number: int, other: int) -> float:
        """Returns how many times as long as another one a call took: the median of the rounds."""
        return median(row[number] / row[other] for row in self.rounds)

    @property
    def ranking(self) -> list[int]:
        """Returns the numbers of the calls, the fastest first, by however little."""
        return sorted(range(len(self.rounds[0])), key=lambda number: self.ratio(number, 0))

    @property
    def quiet(self) -> bool:
        """Returns whether the first call took about as long in most rounds."""
        times = sorted(row[0] for row in self.rounds)
        return times[-1 - self._disturbed] <= _QUIET * times[0]

    def best(self, gain: float) -> int:
        """Returns the number of the fastest call, or 0 where none is faster than the first by more
        than this share in most rounds. On a machine that is not quiet it must be by far in all."""
        needed = len(self.rounds) - self._disturbed
        if not self.quiet:
            gain, needed = _QUIET - 1, len(self.rounds)
        faster = [
            number
            for number in range(1, len(self.rounds[0]))
            if sum(row[0] > (1 + gain) * row[number] for row in self.rounds) >= needed
        ]
        return max([0, *faster], key=lambda number: self.ratio(0, number))

    @property
    def _disturbed(self) -> int:
        return len(self.rounds) // _DISTURBED


def affordable(call: Call, seconds: float, clock: Clock = perf_counter) -> int:
    """Returns how many calls that take as long as this one, which is made once, ``short_turns`` can
    compare in so many seconds. Nothing can be compared where that is less than 2."""
    start = clock()
    call()
    return int(seconds / ((clock() - start) * (1 + LEAST_ROUNDS)))


def short_turns(calls: Sequence[Call], seconds: float, clock: Clock = perf_counter) -> Turns | None:
    """Returns the times of calls after making each once; None where so many seconds are not enough
    for that."""
    start = clock()
    for call in calls:
        call()
    taken = (clock() - start) / len(calls)
    visit = min(seconds / (_ROUNDS * len(calls)), max(_VISIT_SECONDS, _VISIT_CALLS * taken))
    return take_turns(calls, _ROUNDS, visit, start + seconds, clock)


def take_turns(
    calls: Sequence[Call],
    rounds: int,
    visit_seconds: float,
    end: float = inf,
    clock: Clock = perf_counter,
) -> Turns | None:
    """Returns the times of calls in so many rounds, or in the whole ones that are over at ``end``;
    None where they are too few. Each visit to a call makes it for so long, at least once."""
    kept: list[tuple[float, ...]] = []
    latest = [0.0] * len(calls)
    while len(kept) < rounds:
        for number, call in enumerate(calls):
            if clock() + max(visit_seconds, latest[number]) > end:
                return Turns(tuple(kept)) if len(kept) >= LEAST_ROUNDS else None
            latest[number] = _fastest(call, visit_seconds, clock)
        kept.append(tuple(latest))
    return Turns(tuple(kept))


def _fastest(call: Call, seconds: float, clock: Clock) -> float:
    fastest, before = inf, clock()
    end = before + seconds
    while before < end:
        call()
        now = clock()
        fastest, before = min(fastest, now - before), now
    return fastest
