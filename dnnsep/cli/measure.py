"""What the measuring commands share: their options, the progress bar, what is printed, the exit."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dnnsep.cli.common import bad_input, console
from dnnsep.sweep.client import Allocator

if TYPE_CHECKING:
    from rich.progress import Progress

    from dnnsep.measure.roofs import Roofs
    from dnnsep.report.compact import Layout
    from dnnsep.sweep.case import AnyCase
    from dnnsep.sweep.node import Effort
    from dnnsep.sweep.results import Record, Results

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
    wide: bool = True,
) -> None:
    """Measure the cases, save as it goes, print, and exit as the commands do.

    Unless it is ``wide``, the table is printed line by line as cases are measured.
    """
    from dnnsep.sweep.session import Assignment, Session, SessionError

    assignment = Assignment(title, cases, settings, effort, allocator, with_roofs)
    path = output or Path(default_name(title))
    try:
        if resume and output is None:
            raise SessionError("--resume: name the results to go on with, -o FILE")
        session = Session(assignment, path, resume)
    except SessionError as error:
        bad_input(error)
    rows = None
    if shown == "table" and not wide:
        rows = RowPrinter(_layout(title, cases, with_roofs), session.results)
    each_visit = rows.show if rows is not None and effort.visits == 1 else lambda: None
    terminal = BarObserver(assignment.total, each_visit)
    session.measure_roofs(terminal)
    with terminal:
        stopped = session.run(terminal)
    if rows is not None:
        rows.finish()
    else:
        print_results(session.results, shown)
    finish(session.results.records, path, stopped)


def finish(records: Sequence[Record], path: Path, stopped: bool) -> None:
    """Say where the results are, and exit as the commands do."""
    typer.echo(f"results: {path}" + (" (stopped; --resume goes on)" if stopped else ""), err=True)
    if stopped:
        raise typer.Exit(130)
    statuses = [record.status for record in records]
    if killed := statuses.count("killed"):
        typer.echo(f"killed from outside: {killed}; --resume measures them again", err=True)
    if {"incorrect", "failed", "killed"} & set(statuses):
        raise typer.Exit(1)


class BarObserver:
    """Shows on stderr how far a session is; as a context manager, with a progress bar."""

    def __init__(self, total: int, on_advance: Callable[[], None] = lambda: None) -> None:
        """``total`` is how many times ``advance`` will be called, which calls ``on_advance``."""
        self._on_advance = on_advance
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
        self._on_advance()
        self._bar.advance(self._task)


class RowPrinter:
    """Prints the lines of a session's table on stdout, those that are new each time it is asked."""

    def __init__(self, layout: Layout, results: Results) -> None:
        self._layout, self._results = layout, results
        self._shown = 0

    def show(self) -> None:
        """Print the records that were not there the last time, before the first ones the head."""
        if not self._shown:
            for line in self._layout.head():
                typer.echo(line)
        for record, line in self._layout.lines(self._results.records, self._shown):
            dim, colour = record.status == "refused", "red" if record.time is None else None
            typer.secho(line, dim=dim or None, fg=None if dim else colour)
        self._shown = len(self._results.records)
        sys.stdout.flush()

    def finish(self) -> None:
        """Print what is left, and the lines below the table."""
        from dnnsep.report import compact, table

        self.show()
        below = [
            *compact.notes(self._results, self._layout.labels),
            *table.summary(self._results),
        ]
        for line in ["", *compact.wrapped(below, _width())]:
            typer.echo(line)


def _layout(title: str, cases: Sequence[AnyCase], with_roofs: bool) -> Layout:
    from dnnsep.report.compact import layout_of

    return layout_of(
        title,
        {str(case.problem): case.name for case in cases},
        [backend for case in cases for backend in case.backends],
        (len({case.threads for case in cases}), len({case.cache for case in cases})),
        with_roofs,
        _width(),
    )


def _width() -> int:
    """Returns the columns of the terminal, or COLUMNS, or else 80."""
    return shutil.get_terminal_size((80, 24)).columns


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
    # Lines on stdout go above the bar where both are the terminal, and not onto stderr otherwise.
    return Progress(*columns, console=console(True), redirect_stdout=sys.stdout.isatty())


def print_results(results: Results, shown: str) -> None:
    from dnnsep.report import table

    if shown == "json":
        typer.echo(results.to_json(), nl=False)
    elif shown == "csv":
        typer.echo(table.as_csv(results), nl=False)
    elif shown == "markdown":
        from dnnsep.report.markdown import as_markdown

        typer.echo(as_markdown(results))
    else:
        console().print(table.as_rich(results))
        for line in table.summary(results):
            typer.echo(line)


def default_name(title: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "sweep"
    return f"dnnsep-{words}-{datetime.now():%Y%m%d-%H%M%S}.json"
