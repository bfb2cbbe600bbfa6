"""What the commands share: options, the console, the end of a bad call."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Dtype(str, Enum):
    """An option's choices (typer takes no Literal where an option can be repeated)."""

    f32 = "f32"
    bf16 = "bf16"


class CacheState(str, Enum):
    hot = "hot"
    cold = "cold"


def console(stderr: bool = False) -> Console:
    from rich.console import Console

    # Piped output keeps its columns.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 150)


def bad_input(error: ValueError | str) -> NoReturn:
    typer.echo(f"dnnsep: {error}", err=True)
    raise typer.Exit(2)
