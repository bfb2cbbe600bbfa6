"""Gives backends, problems and records the same colours, labels and hover texts everywhere."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from html import escape

from dnnsep.dtypes import PRECISIONS
from dnnsep.problem import Problem
from dnnsep.report.table import impl_text
from dnnsep.sweep.results import Record, block_of, parse_model

# Okabe and Ito's colours, told apart with every common kind of colour vision.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00"),
    *("#CC79A7", "#56B4E9", "#000000", "#F0E442"),
)
_SYMBOLS = {"f32": "circle", "bf16": "diamond"}
# Of problems, and of models whose layers are quantised.
SYMBOLS = {dtype: _SYMBOLS.get(dtype, "square") for dtype in (*PRECISIONS, "int8")}
_LABEL_LENGTH = 26
_HOVER_WIDTH = 46


@dataclass(frozen=True)
class Style:
    """How a backend is drawn in every chart.

    Where colours repeat, bars differ by plotly's ``pattern`` and symbols by ``symbol_suffix``.
    """

    colour: str
    pattern: str
    symbol_suffix: str


def styles_of(backends: Iterable[str]) -> dict[str, Style]:
    """Returns a style for each backend, in order of appearance; the first 24 differ."""
    variants = (("", ""), ("/", "-open"), ("x", "-dot"))
    styles = {}
    for index, backend in enumerate(dict.fromkeys(backends)):
        repetition, colour = divmod(index, len(_COLOURS))
        styles[backend] = Style(_COLOURS[colour], *variants[repetition % len(variants)])
    return styles


def labels_of(records: Iterable[Record]) -> dict[str, str]:
    """Returns a short label for each problem, by descriptor. It is not escaped.

    The label is the problem's name, or those sizes of the descriptor that differ within a group;
    where two would be the same they are numbered.
    """
    labels: dict[str, str] = {}
    for record in records:
        if record.problem in labels:
            continue
        labels[record.problem] = unlike(shortened(record.name or _sizes(record)), labels.values())
    return labels


def hover_text(record: Record) -> str:
    """Returns what a chart has no room for about a record, as HTML that plotly reads."""
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
        lines += [f"! {warning}" for warning in record.doubts]
    return "<br>".join(escape(text) for line in lines for text in textwrap.wrap(line, _HOVER_WIDTH))


def shortened(text: str, length: int = _LABEL_LENGTH) -> str:
    """Returns at most so many characters of a text, 26 of a label's. They are not escaped.

    The middle is left out, since the names of layers differ at their ends.
    """
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 1]}…{text[-tail:]}"


def unlike(name: str, others: Collection[str]) -> str:
    """Returns a name, numbered where it is one of the others."""
    numbered, count = name, 1
    while numbered in others:
        count += 1
        numbered = f"{name} ({count})"
    return numbered


def _interval(record: Record) -> str:
    """Returns the median's interval in µs, ``(190.1 to 201.2)``; empty without one."""
    time = record.time
    if time is None or time.low_us is None or time.high_us is None:
        return ""
    return f"({time.low_us:.1f} to {time.high_us:.1f})"


def _sizes(record: Record) -> str:
    """Returns a descriptor, or a model and its input, without the batch and the dtype, which a
    group shares, and without the activations."""
    if (block := block_of(record.problem)) is not None:
        return replace(block, batch=1, dtype="f32").plain.replace("mb1ic", "ic", 1)
    if record.is_model:
        model, (_, *sizes), _ = parse_model(record.problem)
        return " ".join([model, "x".join(map(str, sizes))])
    problem = Problem.parse(record.problem)
    plain = replace(problem, batch=1, dtype="f32", activations=())
    return str(plain).replace("mb1ic", "ic", 1)
