"""What the measuring commands share: their options, the progress bar, what is printed, the exit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dnnsep.cli.common import bad_input, console
from dnnsep.sweep.client import Allocator

if TYPE_CHECKING:
    from rich.progress import Progress

    from dnnsep.measure.roofs import Roofs
    from dnnsep.sweep.case import AnyCase
    from dnnsep.sweep.node import Effort
    from dnnsep.sweep.results import Results

Format = Literal["table", "markdown", "csv", "json"]
Shown = Annotated[Format, typer.Option("--format", help="What is printed.")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="The results, as JSON. [default: named by time]"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the results in -o.")]
Seconds = Annotated[
    float, typer.Option(min=0.01, help="Most time to measure each backend on a visit.")
]
Precision = Annotated[
    float,
    typer.Option(min=0, help="End a visit once every median's 95 % interval is within so many %."),
]
Visits = Annotated[int, typer.Option(min=1, help="Go through all cases so many times.")]
Memory = Annotated[
    Allocator,
    typer.Option(help="keep: freed memory stays in the process; system: malloc's own way."),
]


def measure(
    cases: Sequence[AnyCase],
    title: str,
    settings: dict[str, Any],
    effort: Effort,
    allocator: Allocator,
    output: Path | None,
    resume: bool,
    shown: Format,
    with_roofs: bool = True,
) -> None:
    """Measure the cases, save as it goes, print, and exit as the commands do."""
    from dnnsep.sweep.session import Assignment, Session, SessionError

    assignment = Assignment(title, cases, settings, effort, allocator, with_roofs)
    path = output or Path(_default_name(title))
    try:
        if resume and output is None:
            raise SessionError("--resume: name the results to go on with, -o FILE")
        session = Session(assignment, path, resume)
    except SessionError as error:
        bad_input(error)
    terminal = BarObserver(assignment.total)
    session.measure_roofs(terminal)
    with terminal:
        stopped = session.run(terminal)
    _print(session.results, shown)
    typer.echo(f"results: {path}" + (" (stopped; --resume goes on)" if stopped else ""), err=True)
    if stopped:
        raise typer.Exit(130)
    if any(record.status in ("incorrect", "failed") for record in session.results.records):
        raise typer.Exit(1)


class BarObserver:
    """Shows on stderr how far a session is; as a context manager, with a progress bar."""

    def __init__(self, total: int) -> None:
        """``total`` is how many times ``advance`` will be called."""
        self._bar = _progress_bar()
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> BarObserver:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def roofs(self, measured: Roofs) -> None:
        """Print the roofs in a line."""
        from dnnsep.report.machine import head

        typer.echo(head(measured), err=True)

    def no_roofs(self, reason: str) -> None:
        """Print why there are none."""
        typer.echo(f"no roofs: {reason}", err=True)

    def step(self, text: str) -> None:
        """Show beside the bar what is being done."""
        self._bar.update(self._task, description=text)

    def advance(self) -> None:
        """Move the bar by one."""
        self._bar.advance(self._task)


def _progress_bar() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=console(True))


def _print(results: Results, shown: str) -> None:
    from dnnsep.report import table

    if shown == "json":
        typer.echo(results.to_json(), nl=False)
    elif shown == "csv":
        typer.echo(table.as_csv(results), nl=False)
    elif shown == "markdown":
        typer.echo(table.as_markdown(results))
    else:
        console().print(table.as_rich(results))
        for line in table.summary(results):
            typer.echo(line)


def _default_name(title: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "sweep"
    return f"dnnsep-{words}-{datetime.now():%Y%m%d-%H%M%S}.json"
