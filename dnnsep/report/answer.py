"""Says what results come to: which backend is fastest where, by how much, and where ours is behind.

What is said is plain text, which whoever shows it has to escape.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dnnsep.measure.stats import CONFIDENCE
from dnnsep.report.labels import labels_of
from dnnsep.report.table import Place, group_of, place
from dnnsep.sweep.results import Record, Results

# Our backend in a sweep of problems, and our engine in one of whole models.
OURS = ("fused", "dnnsep")
# How many of the problems are listed where a backend is behind; the rest are counted.
_LISTED = 5
_NAMED = 4


@dataclass(frozen=True)
class Lead:
    """How many times as fast as the best of the others a backend is: the geometric mean.

    [``low``, ``high``] is its 95 % interval, from Student's t on the logarithms of the ratios, for
    which the problems are a sample of many; both are None with a single problem.
    """

    ratio: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Lead:
        """Returns the lead of one ratio a problem. Raises ValueError without a ratio."""
        if not ratios:
            raise ValueError("a lead needs at least one ratio")
        logs = [math.log(ratio) for ratio in ratios]
        count = len(logs)
        mean = math.fsum(logs) / count
        if count == 1:
            return cls(math.exp(mean), None, None, count)
        from scipy.stats import t

        deviation = math.sqrt(math.fsum((log - mean) ** 2 for log in logs) / (count - 1))
        reach = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
        return cls(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach), count)


@dataclass(frozen=True)
class Behind:
    """A problem on which another backend takes less time.

    ``times`` is how many times as long the subject takes; ``clear`` whether the 95 % intervals of
    the two medians lie apart, None where one has no interval.
    """

    label: str
    best: str
    times: float
    clear: bool | None


@dataclass(frozen=True)
class GroupAnswer:
    """The answer for the problems that share dtype, batch, threads and cache state.

    ``problems`` is how many there are and ``timed`` on how many of them any backend has a time;
    ``compared`` those on which two or more have one. ``fastest`` counts for each backend the
    compared problems on which none is faster. ``lead`` and ``behind``, the worst first, are the
    subject's against the best of ``others``; ``missing`` is on how many problems the subject has no
    time and another has.
    """

    title: str
    problems: int
    timed: int
    compared: int
    fastest: dict[str, int]
    subject: str
    others: tuple[str, ...]
    lead: Lead | None
    behind: tuple[Behind, ...]
    missing: int


@dataclass(frozen=True)
class Answer:
    """What the results of one file come to, on one machine.

    ``statuses`` counts the records without a time by status, ``warned`` those with one that have a
    warning.
    """

    machine: str
    groups: tuple[GroupAnswer, ...]
    statuses: dict[str, int]
    timed: int
    warned: int


class Line(NamedTuple):
    """A line of an answer's text; ``is_item`` says that it is listed under the one before."""

    text: str
    is_item: bool = False


def answer_of(results: Results) -> Answer:
    """Returns the answer of one file's results.

    The subject is our backend where it was asked to run, else the backend that is fastest most
    often.
    """
    records = results.records
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(group_of(record), []).append(record)
    timed = [record for record in records if record.time is not None]
    return Answer(
        machine=machine_line(results),
        groups=tuple(_group(title, group) for title, group in groups.items()),
        statuses=dict(Counter(record.status for record in records if record.time is None)),
        timed=len(timed),
        warned=sum(bool(record.doubts) for record in timed),
    )


def machine_line(results: Results) -> str:
    """Returns the machine in a line: ``AMD EPYC, 2 cores, 2 logical CPUs; threads 1, 2``."""
    facts: dict[str, Any] = results.fingerprint
    counts = (("cores", "cores"), ("logical_cpus", "logical CPUs"))
    known = [f"{facts[key]} {name}" for key, name in counts if facts.get(key) is not None]
    threads = sorted({record.threads for record in results.records})
    line = ", ".join([str(facts.get("cpu") or "unknown CPU"), *known])
    return f"{line}; threads {', '.join(map(str, threads))}" if threads else line


def sentences(answer: Answer) -> list[Line]:
    """Returns what the answer says. The machine is the last line."""
    lines = [line for group in answer.groups for line in _group_lines(group)]
    if not answer.groups:
        lines.append(Line("Nothing was measured: there are no records."))
    if answer.warned:
        of_times = f"{answer.warned} of {_count(answer.timed, 'time')}"
        lines.append(Line(f"With a warning, see below: {of_times}."))
    if answer.statuses:
        counts = ", ".join(f"{count} {status}" for status, count in answer.statuses.items())
        lines.append(Line(f"Records without a time: {counts}."))
    return [*lines, Line(f"Machine: {answer.machine}.")]


def _group(title: str, records: Sequence[Record]) -> GroupAnswer:
    """Returns the answer of records that can be compared."""
    labels = labels_of(records)
    by_place: dict[Place, dict[str, Record]] = {}
    for record in records:
        by_place.setdefault(place(record), {})[record.backend] = record
    races = [own for p in by_place.values() if (own := runners(p))]
    fastest: Counter[str] = Counter()
    for race in races:
        if len(race) > 1:
            best = min(map(_us, race.values()))
            fastest.update(name for name, record in race.items() if _us(record) == best)
    subject = _subject(records, fastest)
    pairs = [(race[subject], rival) for race in races for rival in _rival(race, subject)]
    behind = [
        Behind(
            labels[own.problem],
            rival.backend,
            _us(own) / _us(rival),
            is_clearly_slower(own, rival),
        )
        for own, rival in pairs
        if _us(own) > _us(rival)
    ]
    others = (name for race in races if subject in race for name in race if name != subject)
    return GroupAnswer(
        title=title,
        problems=len(by_place),
        timed=len(races),
        compared=sum(len(race) > 1 for race in races),
        fastest=dict(fastest.most_common()),
        subject=subject,
        others=tuple(dict.fromkeys(others)),
        lead=Lead.of([_us(rival) / _us(own) for own, rival in pairs]) if pairs else None,
        behind=tuple(sorted(behind, key=lambda b: -b.times)),
        missing=sum(subject not in race for race in races),
    )


def runners(records: dict[str, Record]) -> dict[str, Record]:
    """Returns the records with a time by backend.

    One that ran on another backend, as auto's do, is left out where that one was timed itself.
    """
    timed = {name: record for name, record in records.items() if record.time is not None}
    return {
        name: record
        for name, record in timed.items()
        if record.ran_on in (None, name) or record.ran_on not in timed
    }


def _subject(records: Sequence[Record], fastest: Counter[str]) -> str:
    """Returns the backend that the answer is about; empty without a record."""
    backends = dict.fromkeys(record.backend for record in records)
    ours = next((name for name in OURS if name in backends), None)
    timed = (record.backend for record in records if record.time is not None)
    return ours or max(fastest, key=fastest.__getitem__, default="") or next(timed, "")


def _rival(race: dict[str, Record], subject: str) -> Iterator[Record]:
    """Yields the fastest of the others, where the subject and one of them have a time."""
    others = [record for name, record in race.items() if name != subject]
    if subject in race and others:
        yield min(others, key=_us)


def _us(record: Record) -> float:
    if record.time is None:
        raise ValueError("a record without a time was compared")
    return record.time.median_us


def is_clearly_slower(record: Record, rival: Record) -> bool | None:
    """Returns whether the whole 95 % interval of a record's median is above the rival's; None where
    one has no interval."""
    own, other = record.time, rival.time
    if own is None or other is None or own.low_us is None or other.high_us is None:
        return None
    return own.low_us > other.high_us


def _group_lines(group: GroupAnswer) -> Iterator[Line]:
    problems = _count(group.problems, "problem")
    if not group.timed:
        yield Line(f"{group.title}: {problems}, and no backend has a time on any.")
        return
    if not group.compared:
        yield Line(f"{group.title}: {problems}, and none has the times of two backends to compare.")
        ran = group.timed - group.missing
        yield Line(f"{group.subject} has a time on {ran} of {group.problems}.")
        return
    yield Line(f"{group.title}: {problems}. {_fastest_text(group)}")
    if group.missing:
        yield Line(f"{group.subject} has no time on {group.missing} that another has a time on.")
    if group.lead is not None:
        yield Line(_lead_text(group, group.lead))
        yield from _behind_lines(group, group.lead.count)
    if left := group.problems - group.compared:
        yield Line(f"Not compared: {_count(left, 'problem')} with the time of one backend or none.")


def _fastest_text(group: GroupAnswer) -> str:
    """Returns on how many of the compared problems each backend is fastest."""
    counts = iter(group.fastest.items())
    name, count = next(counts)
    more = "".join(f", {other} on {number}" for other, number in counts)
    tied = " (ties count for each)" if sum(group.fastest.values()) > group.compared else ""
    return f"Fastest: {name} on {count} of {group.compared}{more}{tied}."


def _lead_text(group: GroupAnswer, lead: Lead) -> str:
    who = group.subject if group.subject in OURS else f"{group.subject}, fastest most often,"
    over = "one problem, so without an interval"
    if lead.low is not None and lead.high is not None:
        over = f"geomean of {lead.count} problems, 95 % interval {lead.low:.2f} to {lead.high:.2f}"
    return f"{who} is {lead.ratio:.2f} times as fast as {_others_text(group)} ({over})."


def _behind_lines(group: GroupAnswer, count: int) -> Iterator[Line]:
    if not group.behind:
        yield Line(f"It is behind on none of {count}.")
        return
    clear = sum(behind.clear is True for behind in group.behind) or "none"
    yield Line(
        f"It is behind on {len(group.behind)} of {count}, "
        f"{clear} of them by more than the 95 % intervals of the two medians:"
    )
    for behind in group.behind[:_LISTED]:
        doubt = {True: "", False: " (the intervals overlap)", None: " (no interval)"}[behind.clear]
        text = f"{behind.label}: {behind.times:.2f} times as long as {behind.best}{doubt}"
        yield Line(text, is_item=True)
    if rest := group.behind[_LISTED:]:
        text = f"and {len(rest)} more, none by more than {rest[0].times:.2f} times"
        yield Line(text, is_item=True)


def _others_text(group: GroupAnswer) -> str:
    if len(group.others) == 1:
        return group.others[0]
    if len(group.others) > _NAMED:
        return f"the best of {len(group.others)} others"
    return f"the best of {', '.join(group.others)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
