"""Measuring cases: options, progress, resuming, and the results at the end."""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dnnsep.cli.common import bad_input, console
from dnnsep.cli.look import measure_roofs
from dnnsep.sweep.client import Allocator

if TYPE_CHECKING:
    from dnnsep.sweep.node import AnyCase, Effort, Runner
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
    from dnnsep.host.machine import fingerprint
    from dnnsep.report.machine import head
    from dnnsep.sweep.node import Runner
    from dnnsep.sweep.results import Results

    caches = sorted({case.cache for case in cases})
    settings = {
        **settings,
        "seconds": effort.seconds,
        "precision_percent": round(100 * effort.precision, 6),
        "visits": effort.visits,
        "stages": effort.stages,
        "allocator": allocator,
        "caches": caches,
    }
    results = Results(title=title, fingerprint=fingerprint(), settings=settings)
    path = output or Path(_default_name(title))
    if resume:
        results = _resume(path if output else None, results)
    elif path.exists():
        bad_input(f"{path}: exists; add --resume to go on with it, or choose another name")
    elif not path.parent.is_dir():
        bad_input(f"{path}: no such directory")
    for count in sorted({case.threads for case in cases}) if with_roofs else ():
        if count not in results.roofs and (measured := measure_roofs(count)):
            results.roofs[count] = measured
            typer.echo(head(measured), err=True)
    runner = Runner(effort, allocator, results.roofs, probe_cache=with_roofs and len(caches) == 1)
    stopped = _run(cases, effort.visits, results, path, runner)
    _print(results, shown)
    typer.echo(f"results: {path}" + (" (stopped; --resume goes on)" if stopped else ""), err=True)
    if stopped:
        raise typer.Exit(130)
    if any(record.status in ("incorrect", "failed") for record in results.records):
        raise typer.Exit(1)


def _run(
    cases: Sequence[AnyCase], visits: int, results: Results, path: Path, runner: Runner
) -> bool:
    """Run the cases into results, saving after each. Returns whether Ctrl-C ended it early."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    records = {record.key: record for record in results.records}
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    interrupts = _Interrupts()
    try:
        with interrupts, runner, Progress(*columns, console=console(True)) as bar:
            task = bar.add_task("", total=len(cases) * visits)
            for visit, case in itertools.product(range(visits), cases):
                step = lambda text: bar.update(task, description=text)  # noqa: E731
                records |= {r.key: r for r in runner.run(case, records, visit, step)}
                results.records = list(records.values())
                results.workers |= runner.workers
                results.save(path)
                bar.advance(task)
                if interrupts.seen:
                    break
    except KeyboardInterrupt:
        results.save(path)
    return interrupts.seen


class _Interrupts:
    """Whether Ctrl-C came: Python drops the exception where it meets a destructor."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt


def _resume(path: Path | None, fresh: Results) -> Results:
    """The results to go on with: those in the file, if they were made the same way right here."""
    from dnnsep.sweep.results import Results

    if path is None:
        bad_input("--resume: name the results to go on with, -o FILE")
    if not path.exists():
        return fresh
    try:
        old = Results.load(path)
    except ValueError as error:
        bad_input(error)
    for field in ("title", "fingerprint", "settings"):
        before, now = getattr(old, field), getattr(fresh, field)
        if before != now:
            changed = (
                [k for k in now if before.get(k) != now[k]] if isinstance(now, dict) else [now]
            )
            bad_input(f"{path}: cannot be resumed, its {field} differs ({', '.join(changed)})")
    return old


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
