"""Holds what several commands share: options, the console, and how bad input is refused."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

# More threads than a large machine has only take memory.
MOST_THREADS = 1024

# A line that a terminal still shows.
_MOST_TEXT = 600

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Dtype(str, Enum):
    """The dtypes of a model, for an option: typer has no Literal for those that can be repeated."""

    f32 = "f32"
    bf16 = "bf16"
    int8 = "int8"


class ProblemDtype(str, Enum):
    """The dtypes of problems, as PRECISIONS has them, and int8, which is of blocks."""

    f32 = "f32"
    bf16 = "bf16"
    u8s8 = "u8s8"
    s8s8 = "s8s8"
    u8s8s8 = "u8s8s8"
    u8s8f32 = "u8s8f32"
    s8s8u8 = "s8s8u8"
    s8s8f32 = "s8s8f32"
    int8 = "int8"


class CacheState(str, Enum):
    """The cache states an option can take."""

    hot = "hot"
    cold = "cold"


def console(stderr: bool = False) -> Console:
    """Returns a console on stdout or stderr, 150 columns wide where that is not a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 150)


def bad_input(error: ValueError | str) -> NoReturn:
    """Prints in one line on stderr what is wrong with the input. The exit code is 2."""
    typer.echo(f"dnnsep: {one_line(str(error))}", err=True)
    raise typer.Exit(2)


def one_line(text: str) -> str:
    """Returns a text, which may quote what a user gave, as a line: without what a terminal would
    act on, and without its middle where it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= _MOST_TEXT:
        return line
    half = _MOST_TEXT // 2
    return f"{line[:half]} … {line[-half:]}"
