"""Finds steps in a network that run as cascades (codegen/cascade).

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

from torch import Tensor

from dnnsep.codegen import tuner
from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.links import Member
from dnnsep.codegen.generalstep import GeneralStep
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.graph import layout
from dnnsep.graph.network import Action, Buffer, Native, Network, Value, values_of
from dnnsep.host.turns import Turns, measuring

# A cascade has so many steps at most: a block with squeeze and excitation has six.
_MOST = 6
# Candidates are measured alone for so many seconds at most, and those that are the best then within
# the network, so many times at most: of what is not confirmed there others are the best.
_SECONDS, _TRIALS = 60.0, 4
# A network is timed in so many rounds, each of as many calls as take so many seconds, from one to
# so many of them.
_ROUNDS, _VISIT_SECONDS, _CALLS = 6, 0.1, 30


@dataclass(frozen=True)
class Candidate:
    """Actions [``first``, ``end``) that could be a cascade, as its members, the bytes that they
    write for each other, and why it is not worth measuring; empty where it is."""

    first: int
    end: int
    members: list[Member]
    between_bytes: int
    why_not: str


def candidates(
    actions: Sequence[Action], outputs: Sequence[Any], threads: int
) -> Iterator[Candidate]:
    """Yields what could be cascades, by their ends: pairs of steps, and longer ones where not all
    of them are layers and measuring is worth it."""
    uses = Counter(value.buffer for action in actions for value in values_of(action))
    uses.update(value.buffer for value in outputs if isinstance(value, Value))
    for end in range(2, len(actions) + 1):
        for first in range(end - 2, max(end - _MOST, 0) - 1, -1):
            steps = [action for action in actions[first:end] if isinstance(action, Native)]
            if len(steps) < end - first or not steps[0].waits:
                break
            is_pair = len(steps) == 2
            of_layers = (isinstance(action.step, (LayerStep, GeneralStep)) for action in steps)
            if not is_pair and all(of_layers):
                continue
            members, why_not = _members(steps, uses)
            if members and not why_not:
                why_not = choose.why_not_measured(members, threads)
            if members and (is_pair or not why_not):
                between = [action.operands["y"].like for action in steps[:-1]]
                written = sum(like.numel() * like.element_size() for like in between)
                yield Candidate(first, end, members, written, why_not)


def chosen(
    actions: Sequence[Action],
    outputs: Sequence[Any],
    inputs: Sequence[Tensor],
    threads: int,
    tune: bool,
) -> list[Candidate]:
    """Returns those neighbouring steps, in order, that were measured to be faster as a cascade,
    alone and then within the network, on such inputs: those that save the most time together."""
    found = [c for c in candidates(actions, outputs, threads) if not c.why_not]
    tune = tune and tuner.wanted()
    if tune:
        _measure_alone(found, threads)
    for _ in range(_TRIALS if tune else 0):
        tried = _best(len(actions), found, threads)
        if all(_verdict(candidate, threads).in_network for candidate in tried):
            break
        _try(actions, outputs, inputs, tried, threads)
    found = [candidate for candidate in found if _verdict(candidate, threads).in_network]
    return _best(len(actions), found, threads)


def confirmed(
    actions: Sequence[Action],
    outputs: Sequence[Any],
    inputs: Sequence[Tensor],
    like: Sequence[Candidate],
    threads: int,
    tune: bool,
) -> list[Candidate]:
    """Returns which cascades of actions are measured to be faster, too, where other kernels do the
    same; they are cut up as those that they are ``like``, and measured within the network only."""
    others = {(one.first, one.end): one for one in like}
    if not others:
        return []
    found = [
        candidate
        for candidate in candidates(actions, outputs, threads)
        if (candidate.first, candidate.end) in others and not candidate.why_not
    ]
    new = [one for one in found if not _verdict(one, threads).in_network]
    if new and tune and tuner.wanted():
        for one in new:
            known = _verdict(others[one.first, one.end], threads)
            choose.note(one.members, threads, replace(known, in_network=False), keep=False)
        _try(actions, outputs, inputs, new, threads)
    verdicts = [_verdict(one, threads) for one in found]
    return [one for one, v in zip(found, verdicts, strict=True) if v.in_network and v.cut]


def _measure_alone(found: Sequence[Candidate], threads: int) -> None:
    """Measures candidates, in order, as long as there is time for it."""
    end = perf_counter() + _SECONDS
    for candidate in found:
        if perf_counter() > end:
            return
        choose.verdict_on(candidate.members, threads)


def _verdict(candidate: Candidate, threads: int) -> choose.Verdict:
    """Returns what is known of a candidate."""
    return choose.verdict_on(candidate.members, threads, tune=False)


def _best(count: int, found: Sequence[Candidate], threads: int) -> list[Candidate]:
    """Returns the cascades of a network of so many actions that save the most time together."""
    saved = [0.0] * (count + 1)  # at most, by so many actions from the first on
    last: dict[int, Candidate] = {}  # by how many actions there are up to the end
    by_end: dict[int, list[Candidate]] = {}
    for candidate in found:
        by_end.setdefault(candidate.end, []).append(candidate)
    for end in range(1, count + 1):
        saved[end] = saved[end - 1]
        for candidate in by_end.get(end, ()):
            gain = _verdict(candidate, threads).gain
            if gain > 0 and saved[candidate.first] + gain > saved[end]:
                saved[end] = saved[candidate.first] + gain
                last[end] = candidate
    chosen: list[Candidate] = []
    end = count
    while end:
        if end in last:
            chosen.append(last[end])
            end = last[end].first
        else:
            end -= 1
    return chosen[::-1]


def replaced(actions: Sequence[Action], chosen: Sequence[Candidate], threads: int) -> list[Action]:
    """Returns the actions with the chosen cascades in place of their steps."""
    found: list[Action] = []
    end = 0
    for candidate in chosen:
        found += actions[end : candidate.first]
        end = candidate.end
        steps = [action for action in actions[candidate.first : end] if isinstance(action, Native)]
        cut = _verdict(candidate, threads).cut
        assert cut is not None
        step = choose.cascade(candidate.members, cut)
        operands = step.operands_of([action.operands for action in steps])
        found.append(Native(", ".join(action.name for action in steps), step, operands))
    return [*found, *actions[end:]]


def _try(
    actions: Sequence[Action],
    outputs: Sequence[Any],
    inputs: Sequence[Tensor],
    chosen: Sequence[Candidate],
    threads: int,
) -> None:
    """Times cascades within their network, and their steps within the network without cascades,
    where each thread goes on to its next step as soon as it can, in turns; notes the verdicts, one
    for all cascades of the same steps."""
    cascaded = replaced(actions, chosen, threads)
    networks = Network(actions, outputs), Network(cascaded, outputs)
    with measuring():
        _measure_within(networks, inputs, chosen, threads)


def _measure_within(
    networks: tuple[Network, Network],
    inputs: Sequence[Tensor],
    chosen: Sequence[Candidate],
    threads: int,
) -> None:
    """As ``_try``, of the network without the cascades and with them."""
    timers = [
        network.timer(inputs, cuts) for network, cuts in zip(networks, _ends(chosen), strict=True)
    ]
    calls = min(max(int(_VISIT_SECONDS / sum(timers[0]())), 1), _CALLS)
    rounds: list[list[list[float]]] = []
    for _ in range(choose.TRIES):
        rounds += [[_typical(timer, calls) for timer in timers] for _ in range(_ROUNDS)]
        found = _turns_of(rounds, chosen, threads)
        if all(choose.is_settled(turns) for turns in found.values()):
            break
    alike: dict[str, list[Candidate]] = {}
    for candidate in chosen:
        alike.setdefault(choose.verdict_key(candidate.members, threads), []).append(candidate)
    for key, of_key in alike.items():
        turns, known = found[key], _verdict(of_key[0], threads)
        cut = known.cut if turns.best(choose.GAIN) else None
        seconds = turns.seconds(0) / len(of_key)
        verdict = choose.Verdict(cut, turns.ratio(0, 1), seconds, in_network=True)
        choose.note(of_key[0].members, threads, verdict, keep=turns.quiet)


def _ends(chosen: Sequence[Candidate]) -> tuple[set[int], set[int]]:
    """Returns the actions that begin or follow a candidate, in the network without cascades and in
    that with them."""
    plain, cascaded = set(), set()
    left_out = 0
    for candidate in chosen:
        plain |= {candidate.first, candidate.end}
        first = candidate.first - left_out
        cascaded |= {first, first + 1}
        left_out += candidate.end - candidate.first - 1
    return plain, cascaded


def _turns_of(
    rounds: Sequence[Sequence[Sequence[float]]], chosen: Sequence[Candidate], threads: int
) -> dict[str, Turns]:
    """Returns what steps took one after the other and as cascades, those of the same steps
    together, in rounds that have the seconds of each action without cascades, and with them."""
    rows: dict[str, list[tuple[float, float]]] = {}
    left_out = 0  # actions that the second network has fewer, up to here
    for candidate in chosen:
        first, end = candidate.first, candidate.end
        times = [(sum(plain[first:end]), other[first - left_out]) for plain, other in rounds]
        left_out += end - first - 1
        key = choose.verdict_key(candidate.members, threads)
        before = rows.get(key, [(0.0, 0.0)] * len(rounds))
        rows[key] = [(a + c, b + d) for (a, b), (c, d) in zip(before, times, strict=True)]
    return {key: Turns(tuple(of_key)) for key, of_key in rows.items()}


def _typical(timer: Callable[[], list[float]], calls: int) -> list[float]:
    """Returns the median that each action took in so many calls: a cascade is as fast as the caches
    let it, which others use, too, so that its fastest call says little."""
    return [median(column) for column in zip(*(timer() for _ in range(calls)), strict=True)]


def _members(actions: Sequence[Native], uses: Counter[Buffer]) -> tuple[list[Member], str]:
    """Returns actions as members of a cascade, none where one of them reads nothing of the others;
    and why they cannot be one, empty where they can."""
    written: dict[Buffer, int] = {}
    inside: Counter[Buffer] = Counter()
    found: list[Member] = []
    why_not = ""
    for number, action in enumerate(actions):
        reads = {
            operand: written[value.buffer]
            for operand, value in action.operands.items()
            if operand != "y" and value.buffer in written
        }
        if number and not reads:
            return [], ""
        found.append(Member(action.step, reads))
        inside.update(value.buffer for value in action.operands.values())
        y = action.operands["y"]
        if number < len(actions) - 1:
            if y.buffer.kind != "arena" or y.buffer in written:
                why_not = "something else reads what is between them"
            written[y.buffer] = number
        if any(layout.offset_of(value.like) for value in (y, *(action.operands[o] for o in reads))):
            why_not = "what is between them is a slice"
    if inside[actions[-1].operands["y"].buffer] > 1:
        why_not = "the last one writes into what they read"
    if any(inside[buffer] != uses[buffer] for buffer in written):
        why_not = "something else reads what is between them"
    return found, why_not
