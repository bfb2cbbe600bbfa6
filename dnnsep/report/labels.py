"""How backends, problems and records are shown all over a report: colours, labels, hover texts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from html import escape

from dnnsep.problem import Problem
from dnnsep.report.table import impl_text
from dnnsep.sweep.results import Record

# Okabe and Ito's colours, told apart with every common kind of colour vision.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00"),
    *("#CC79A7", "#56B4E9", "#000000", "#F0E442"),
)
SYMBOLS = {"f32": "circle", "bf16": "diamond"}
_LABEL_LENGTH = 26
_HOVER_WIDTH = 46


@dataclass(frozen=True)
class Style:
    """How a backend is drawn everywhere: a colour, and where colours repeat a pattern for bars
    and a plotly suffix for symbols."""

    colour: str
    pattern: str
    symbol_suffix: str


def styles_of(backends: Iterable[str]) -> dict[str, Style]:
    """A style for each backend, in order of appearance; up to 24 differ."""
    again = (("", ""), ("/", "-open"), ("x", "-dot"))
    found = {}
    for index, backend in enumerate(dict.fromkeys(backends)):
        turn, colour = divmod(index, len(_COLOURS))
        found[backend] = Style(_COLOURS[colour], *again[turn % len(again)])
    return found


def labels_of(records: Iterable[Record]) -> dict[str, str]:
    """A short label for each problem, by descriptor: its name, or what of the descriptor differs
    within a group; numbered where two would be the same. Not escaped."""
    found: dict[str, str] = {}
    for record in records:
        if record.problem in found:
            continue
        label = base = shortened(record.name or _sizes(record))
        count = 1
        while label in found.values():
            count += 1
            label = f"{base} ({count})"
        found[record.problem] = label
    return found


def hover_text(record: Record) -> str:
    """Everything about a record that a chart has no room for, as plotly's HTML."""
    ran_on = f" on {record.ran_on}" if record.ran_on not in (None, record.backend) else ""
    lines = [record.name or "", record.problem]
    lines.append(f"{record.backend}{ran_on}, threads {record.threads}, {record.cache}")
    if record.time is None:
        lines.append(f"{record.status}: {record.reason or 'no reason given'}")
    else:
        lines += [f"median {record.time.median_us:.1f} µs {_interval(record)}".strip()]
        lines.append(f"{record.gflops:.1f} GFLOP/s" if record.gflops is not None else "")
        if record.roof is not None and record.roof_share is not None:
            lines[-1] += f", {record.roof_share:.0%} of the {record.roof.binds} roof"
        lines.append(impl_text(record.impls))
        lines += [f"! {warning}" for warning in record.warnings]
    return "<br>".join(escape(part) for line in lines for part in textwrap.wrap(line, _HOVER_WIDTH))


def shortened(text: str) -> str:
    """At most 26 characters: the middle goes, since layers differ at their names' ends. Not
    escaped."""
    if len(text) <= _LABEL_LENGTH:
        return text
    tail = _LABEL_LENGTH // 3
    return f"{text[: _LABEL_LENGTH - tail - 1]}…{text[-tail:]}"


def _interval(record: Record) -> str:
    """``(190.1 to 201.2)``, in µs; empty where there is none."""
    time = record.time
    if time is None or time.low_us is None or time.high_us is None:
        return ""
    return f"({time.low_us:.1f} to {time.high_us:.1f})"


def _sizes(record: Record) -> str:
    """Returns a descriptor without the batch and the dtype, which a group shares, and without the
    activations."""
    if record.is_model:
        return record.problem
    problem = Problem.parse(record.problem)
    plain = replace(problem, batch=1, dtype="f32", activations=())
    return str(plain).replace("mb1ic", "ic", 1)
