"""Shows a sweep's results in lines that fit a terminal of 80 columns: a line a record, which can be
shown as soon as it is measured, and what ran in lines below.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dnnsep.problem import Problem
from dnnsep.report import table
from dnnsep.sweep.results import Record, Results, block_of, dtype_and_batch

_GAP = "  "
_MEDIAN, _SHARE, _SPEED = 10, 13, 8
_LONGEST_BACKEND = 14
_SHORTEST_LABEL = 12


@dataclass(frozen=True)
class Layout:
    """The columns of a table: ``labels`` by problem, and how wide the columns of text are.

    Threads, caches and shares of the roof have a column only where they say something.
    """

    title: str
    labels: Mapping[str, str]
    label_width: int
    backend_width: int
    with_threads: bool
    with_caches: bool
    with_roofs: bool

    def head(self) -> list[str]:
        """Returns the title, the headings and a rule."""
        cells = ["problem", *self._places("thr", "cache"), "backend", "median µs "]
        cells += ["of roof"] if self.with_roofs else []
        line = self._line([*cells, "speed-up"])
        return [self.title, line, "─" * len(line)]

    def lines(self, records: Sequence[Record], start: int = 0) -> Iterator[tuple[Record, str]]:
        """Yields the records from ``start`` on, each with its line, which has a ``!`` beside the
        median where a warning is the record's own and not that of most records so far."""
        _, base = table.base_times(records)
        shared = table.shared_kinds(records)
        previous = table.place(records[start - 1]) if start else None
        for record in records[start:]:
            here = table.place(record)
            label = "" if here == previous else self.labels[record.problem]
            previous = here
            marked = "!" if table.own_doubts(record, shared) else " "
            median = f"{record.time.median_us:.1f}" if record.time else record.status
            cells = [label, *self._places(str(record.threads), record.cache)]
            cells += [shortened(record.backend, self.backend_width), f"{median}{marked}"]
            cells += [table.share_text(record)] if self.with_roofs else []
            yield record, self._line([*cells, table.speed_up(record, base.get(here))])

    def _places(self, threads: str, cache: str) -> list[str]:
        return [threads] * self.with_threads + [cache] * self.with_caches

    def _line(self, cells: list[str]) -> str:
        left = [self.label_width, *self._places_widths(), self.backend_width]
        right = [_MEDIAN, *[_SHARE] * self.with_roofs, _SPEED]
        texts = [cell.ljust(width) for cell, width in zip(cells, left, strict=False)]
        texts += [cell.rjust(n) for cell, n in zip(cells[len(left) :], right, strict=True)]
        return _GAP.join(texts).rstrip()

    def _places_widths(self) -> list[int]:
        return [4] * self.with_threads + [5] * self.with_caches


def layout_of(
    title: str,
    problems: Mapping[str, str | None],
    backends: Sequence[str],
    places: tuple[int, int],
    with_roofs: bool,
    width: int,
) -> Layout:
    """Returns the layout for a terminal of so many columns.

    ``problems`` has the names of the problems by their text; ``places`` how many numbers of threads
    and how many cache states there are.
    """
    threads, caches = (count > 1 for count in places)
    backend = min(max(map(len, (*backends, "backend"))), _LONGEST_BACKEND)
    columns = [backend, _MEDIAN, *[_SHARE] * with_roofs, _SPEED, *[4] * threads, *[5] * caches]
    room = width - sum(columns) - len(_GAP) * len(columns)
    labels = labels_of(problems, max(room, _SHORTEST_LABEL))
    longest = max(map(len, (*labels.values(), "problem")))
    return Layout(title, labels, longest, backend, threads, caches, with_roofs)


def notes(results: Results, labels: Mapping[str, str]) -> list[str]:
    """Returns lines that say what ran on each backend, and why records have no time."""
    ran: dict[str, Counter[str]] = {}
    reasons: dict[tuple[str, str], list[str]] = {}
    for record in results.records:
        if record.time is not None:
            ran.setdefault(record.backend, Counter())[table.impl_text(record.impls)] += 1
        else:
            why = f"{record.status}: {record.reason}"
            reasons.setdefault((record.backend, why), []).append(labels[record.problem])
    lines = [
        f"{backend} ran "
        + "; ".join(f"{impl or 'no oneDNN primitive'} ({n})" for impl, n in impls.most_common())
        for backend, impls in ran.items()
    ]
    return lines + [
        f"{backend} {why} ({names[0]}{f' and {len(names) - 1} more' if names[1:] else ''})"
        for (backend, why), names in reasons.items()
    ]


def wrapped(lines: Sequence[str], width: int) -> list[str]:
    """Returns the lines cut between words, with what follows of a line set in."""
    return [
        piece
        for line in lines
        for piece in textwrap.wrap(
            line, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
        )
    ]


def labels_of(problems: Mapping[str, str | None], width: int) -> dict[str, str]:
    """Returns a label of at most ``width`` characters for each problem, no two the same.

    It is the problem's name, with the dtype and the batch where others of that name differ in them,
    or the descriptor without activations. Where two would be the same they are numbered.
    """
    labels: dict[str, str] = {}
    for text, name in problems.items():
        if name:
            same = [dtype_and_batch(other) for other, its in problems.items() if its == name]
            whole = _told_apart(name, dtype_and_batch(text), same)
        else:
            whole = _sizes(text)
        label, count = shortened(whole, width), 1
        while label in labels.values():
            count += 1
            number = f" ({count})"
            label = shortened(whole, width - len(number)) + number
        labels[text] = label
    return labels


def shortened(text: str, width: int) -> str:
    """Returns at most ``width`` characters of a text, without its middle where it is longer, since
    the names of layers differ at their ends."""
    if len(text) <= width:
        return text
    tail = width // 3
    return f"{text[: width - tail - 1]}…{text[len(text) - tail :]}"


def _told_apart(name: str, mine: tuple[str, int], same: Sequence[tuple[str, int]]) -> str:
    """Returns a name with the dtype and the batch, where those of the same name have several."""
    dtypes, batches = ({part[i] for part in same} for i in (0, 1))
    dtype = f" {mine[0]}" if len(dtypes) > 1 else ""
    return name + dtype + (f" batch {mine[1]}" if len(batches) > 1 else "")


def _sizes(text: str) -> str:
    """Returns a descriptor without its activations, a block's with its dtype; another model and its
    input as they are."""
    if (block := block_of(text)) is not None:
        return block.plain
    if " " in text:
        return text
    return str(replace(Problem.parse(text), activations=()))
