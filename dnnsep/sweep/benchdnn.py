"""Reads oneDNN's benchdnn convolution shape files as they are.

A line means what benchdnn means by it (str2desc in tests/benchdnn/conv/conv_aux.cpp), which differs
from our own descriptors where keys are missing: without ``g`` it is an ordinary convolution,
without ``mb`` the batch is 2, and the width takes the height's values only where the line has no
key of the width at all.

A depthwise line (g = ic) followed by the 1x1 line that reads its output is one separable problem.
Every other line is one problem, depthwise or ordinary, or it is left out with a reason: three
dimensions, groups of other sizes, options, or whatever else a Problem refuses. Such a line never
ends the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from dnnsep.host.inputs import read_text
from dnnsep.problem import Problem

# Words stand between blanks; a name may hold blanks within its quotes.
_WORD = re.compile(r'(?:"[^"]*"|\S)+')
_LINE = re.compile(r'((?:_*[a-z]+\d+)+)_*(?:n"([^"]*)")?')
_CHANNELS = ("g", "mb", "ic", "oc")
_SPATIAL = tuple(key + axis for key in "ikospd" for axis in "hw")
# The keys of a third dimension, with the values with which there is none.
_FLAT = {"id": 1, "od": 1, "kd": 1, "sd": 1, "pd": 0, "dd": 0}
_DEFAULT_BATCH = 2


@dataclass(frozen=True)
class NamedProblem:
    """A problem and what its file calls it."""

    problem: Problem
    name: str | None


@dataclass(frozen=True)
class LeftOut:
    """A line of a shape file that is no problem, counted from 1, and why.

    It prints itself as ``file:line: text: reason``.
    """

    path: Path
    line: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}: {self.reason}"


@dataclass(frozen=True)
class ShapeFile:
    """The problems that a file gives, and the lines of shape files that were left out."""

    problems: list[NamedProblem]
    left_out: list[LeftOut]


def read_shape_file(path: Path) -> ShapeFile:
    """Returns a file's problems in its order.

    Raises ValueError, which names the file, if it cannot be read.
    """
    problems: list[NamedProblem] = []
    left_out: list[LeftOut] = []
    before: NamedProblem | None = None  # the line before this one, whose output this one may read
    for number, line in enumerate(read_text(path).splitlines(), 1):
        for text in _problem_texts(line):
            try:
                named = _named_problem(text)
            except ValueError as error:
                left_out.append(LeftOut(path, number, text, str(error)))
                before = None
                continue
            joined = _joined(before, named) if before else None
            if joined:
                problems[-1] = joined
            else:
                problems.append(named)
            before = named
    return ShapeFile(problems, left_out)


def _problem_texts(line: str) -> list[str]:
    """Returns the words of a line before its comment; with an option among them they are one text,
    because an option says how the others are meant."""
    words = []
    for word in _WORD.findall(line):
        if word.startswith("#"):
            break
        words.append(word)
    return [" ".join(words)] if any(word.startswith("-") for word in words) else words


def _named_problem(text: str) -> NamedProblem:
    """Raises ValueError naming the rule by which a text is no problem."""
    if text.startswith("-"):
        raise ValueError("options of benchdnn are not read")
    match = _LINE.fullmatch(text)
    if match is None:
        raise ValueError("not understood: neither a convolution's descriptor nor a comment")
    numbers = {key: int(value) for key, value in re.findall(r"([a-z]+)(\d+)", match[1])}
    for key, value in numbers.items():
        if value != _FLAT.get(key, value):
            raise ValueError(f"{key}={value}: has three dimensions")
        if key not in (*_CHANNELS, *_SPATIAL, *_FLAT):
            raise ValueError(f"{key}: unknown key")
    return NamedProblem(_problem(numbers), match[2] or None)


class _Axis(NamedTuple):
    """What a problem has of the height or of the width."""

    size: int = 1
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0


def _problem(numbers: dict[str, int]) -> Problem:
    """Returns the depthwise or ordinary convolution of a line's numbers by their keys."""
    for key in ("ic", "oc"):
        if key not in numbers:
            raise ValueError(f"{key}: missing")
    groups, ic, oc = numbers.get("g", 1), numbers["ic"], numbers["oc"]
    if groups != 1 and (groups == 0 or groups != ic or oc % groups):
        raise ValueError(f"g={groups}: neither depthwise (ic={ic}, oc={oc}) nor ordinary (1)")
    has_height, has_width = _is_given(numbers, "h"), _is_given(numbers, "w")
    if not has_height and not has_width:
        raise ValueError("ih: missing")
    # Without keys of the height an image has one row; without keys of the width it is square.
    h = _axis(numbers, "h") if has_height else _Axis()
    w = _axis(numbers, "w") if has_width else h
    return Problem(
        batch=numbers.get("mb", _DEFAULT_BATCH),
        in_channels=ic,
        out_channels=oc,
        height=h.size,
        width=w.size,
        kernel=(h.kernel, w.kernel),
        stride=(h.stride, w.stride),
        padding=(h.before, h.after, w.before, w.after),
        dilation=(h.dilation, w.dilation),
        channel_multiplier=1 if groups == 1 else oc // ic,
        kind="convolution" if groups == 1 else "depthwise",
    )


def _is_given(numbers: dict[str, int], axis: str) -> bool:
    """Whether benchdnn takes a line to have an axis: a stride of 1 and no padding do not count."""
    return (
        any(numbers.get(key + axis) for key in "ikod")
        or numbers.get(f"s{axis}", 1) != 1
        or numbers.get(f"p{axis}", 0) > 0
    )


def _axis(numbers: dict[str, int], axis: str) -> _Axis:
    """Returns an axis with benchdnn's defaults: an output size settles the padding after it where
    that differs from the padding before, and both where none is given."""
    for key in (f"i{axis}", f"k{axis}"):
        if key not in numbers:
            raise ValueError(f"{key}: missing")
    size, kernel, stride = numbers[f"i{axis}"], numbers[f"k{axis}"], numbers.get(f"s{axis}", 1)
    dilation = numbers.get(f"d{axis}", 0) + 1
    reach = dilation * (kernel - 1) + 1
    out = numbers.get(f"o{axis}", 0)
    both = (out - 1) * stride + reach - size if out else 0
    before = numbers.get(f"p{axis}", int(both / 2))
    alike = not out or (stride and (size + 2 * before - reach) // stride + 1 == out)
    return _Axis(size, kernel, stride, dilation, before, before if alike else both - before)


def _joined(before: NamedProblem, named: NamedProblem) -> NamedProblem | None:
    """Returns the separable problem of two lines where the first is depthwise and the second the
    1x1 convolution of what it gives; otherwise None."""
    depthwise, pointwise = before.problem, named.problem
    if (
        depthwise.kind != "depthwise"
        or pointwise.kind != "convolution"
        or pointwise.input_shape != depthwise.output_shape
        or (pointwise.kernel, pointwise.stride) != ((1, 1), (1, 1))
        or any(pointwise.padding)
    ):
        return None
    joined = replace(
        depthwise, kind="separable", out_channels=pointwise.out_channels, activations=()
    )
    return NamedProblem(joined, before.name)
