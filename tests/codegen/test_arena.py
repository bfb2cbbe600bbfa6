"""Where what lives between steps lies: nothing over anything that is needed, and little memory."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from dnnsep.codegen.arena import Lifetime, offsets


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    """Draws lifetimes in the order of their first steps, some of them empty or as short as can
    be."""
    firsts = sorted(draw(st.lists(st.integers(0, 20), max_size=25)))
    return [
        Lifetime(draw(st.sampled_from([0, 1, 63, 64, 65, 1000, 4096])), first, first + length)
        for first in firsts
        for length in [draw(st.integers(0, 6))]
    ]


def _meet(one: Lifetime, other: Lifetime) -> bool:
    return one.first <= other.last and other.first <= one.last


@given(lifetimes())
def test_nothing_lies_over_what_is_needed_at_the_same_time(lives: list[Lifetime]) -> None:
    starts, total = offsets(lives)
    assert len(starts) == len(lives)
    for start, life in zip(starts, lives, strict=True):
        assert start >= 0
        assert start % 64 == 0
        assert start + life.size <= total
    for (start, life), (other_start, other) in combinations(zip(starts, lives, strict=True), 2):
        if _meet(life, other):
            apart = start + life.size <= other_start or other_start + other.size <= start
            assert apart or 0 in (life.size, other.size), (life, other)


@given(lifetimes())
def test_no_more_memory_than_for_each_its_own(lives: list[Lifetime]) -> None:
    _, total = offsets(lives)
    assert total <= sum(-(-life.size // 64) * 64 for life in lives)
    at_once = [
        sum(life.size for life in lives if life.first <= step <= life.last) for step in range(27)
    ]
    assert total >= max(at_once)


@given(lifetimes())
def test_the_lowest_free_place_is_taken(lives: list[Lifetime]) -> None:
    """Each one lies at the start, or right behind another that is needed when it is written."""
    starts, _ = offsets(lives)
    for number, (start, life) in enumerate(zip(starts, lives, strict=True)):
        ends = {
            at + -(-other.size // 64) * 64
            for at, other in zip(starts[:number], lives[:number], strict=True)
            if other.last >= life.first
        }
        assert start == 0 or start in ends


def test_what_is_read_by_a_step_is_not_written_by_it() -> None:
    """A chain takes the memory of two results, however long it is."""
    chain = [Lifetime(1000, step, step + 1) for step in range(12)]
    starts, total = offsets(chain)
    assert starts == [0, 1024] * 6
    assert total == 2048


def test_a_gap_is_used_again_if_it_is_large_enough() -> None:
    lives = [
        Lifetime(128, 0, 1),
        Lifetime(64, 0, 9),
        Lifetime(192, 2, 9),  # the gap of 128 is too small
        Lifetime(128, 3, 9),
    ]
    assert offsets(lives) == ([0, 128, 192, 0], 384)


def test_nothing_needs_nothing() -> None:
    assert offsets([]) == ([], 0)
