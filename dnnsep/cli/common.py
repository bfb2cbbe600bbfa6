"""Holds what several commands share: options, the console, and how bad input is refused."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Dtype(str, Enum):
    """The dtypes an option can take (typer has no Literal for options that can be repeated)."""

    f32 = "f32"
    bf16 = "bf16"


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
    """Prints what is wrong with the input on stderr and ends the command with exit code 2."""
    typer.echo(f"dnnsep: {error}", err=True)
    raise typer.Exit(2)
