"""Reads oneDNN's benchdnn convolution shape files as they are.

A depthwise line (g = ic) followed by the 1x1 line that reads its output is one separable problem;
a depthwise line alone takes as many output channels as it has itself. Every other line is left
out and counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from dnnsep.problem import Problem

_NAME = re.compile(r'n"([^"]*)"')


@dataclass(frozen=True)
class NamedProblem:
    """A problem and what its file calls it."""

    problem: Problem
    name: str | None


@dataclass(frozen=True)
class ShapeFile:
    """The separable problems of a file, and how many of its lines were left out."""

    problems: list[NamedProblem]
    left_out: int


def read_shape_file(path: Path) -> ShapeFile:
    """Raises ValueError naming the file, the line and the rule; OSError if it cannot be read."""
    problems: list[NamedProblem] = []
    left_out = 0
    waiting: NamedProblem | None = None  # a depthwise line whose 1x1 line may come next
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        name = _NAME.search(text)
        descriptor = _NAME.sub("", text).strip("_")
        sizes = {k: int(v) for k, v in re.findall(r"([a-z]+)(\d+)", descriptor)}
        groups, ic, oc = sizes.get("g", 1), sizes.get("ic", 0), sizes.get("oc", 0)
        if waiting is not None and groups == 1 and _is_pointwise(sizes, waiting.problem):
            joined = replace(waiting.problem, out_channels=oc)
            problems.append(NamedProblem(joined, waiting.name))
            waiting = None
            continue
        if waiting is not None:
            problems.append(waiting)
            waiting = None
        if not re.fullmatch(r"(_?[a-z]+\d+)+", descriptor) or groups != ic or oc % max(ic, 1):
            left_out += 1
            continue
        multiplier = f"cm{oc // ic}" if oc != ic else ""
        try:
            problem = Problem.parse(descriptor + multiplier)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        waiting = NamedProblem(problem, name.group(1) if name else None)
    if waiting is not None:
        problems.append(waiting)
    return ShapeFile(problems, left_out)


def _is_pointwise(sizes: dict[str, int], before: Problem) -> bool:
    """Whether a line is a 1x1 convolution of what the depthwise problem before it gives."""
    same_input = (
        sizes.get("mb", before.batch) == before.batch
        and sizes.get("ic") == before.mid_channels
        and sizes.get("ih") == before.out_height
        and sizes.get("iw", sizes.get("ih")) == before.out_width
    )
    plain = all(sizes.get(k, 1) == 1 for k in ("kh", "kw", "sh", "sw")) and "kh" in sizes
    return same_input and plain and sizes.get("ph", 0) == sizes.get("pw", 0) == 0
