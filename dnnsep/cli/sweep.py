"""``dnnsep sweep``: measure, save as it goes, print."""

from __future__ import annotations

import itertools
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dnnsep.cli.common import CacheState, Dtype, bad_input, console
from dnnsep.cli.look import measure_roofs
from dnnsep.sweep.client import Allocator

if TYPE_CHECKING:
    from dnnsep.sweep.config import Case
    from dnnsep.sweep.results import Cache, Results
    from dnnsep.sweep.runner import Runner

Format = Literal["table", "markdown", "csv", "json"]


def sweep(
    config: Annotated[
        list[str], typer.Argument(help="YAML sweep files, benchdnn shape files or descriptors.")
    ],
    backend: Annotated[
        list[str] | None, typer.Option(help="Instead of the file's; peers: all of them.")
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Instead of the file's.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    cache: Annotated[
        list[CacheState] | None,
        typer.Option(help="The caches at each call. [default: the file's, or hot]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The results, as JSON. [default: named by time]"),
    ] = None,
    output_format: Annotated[Format, typer.Option("--format", help="What is printed.")] = "table",
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Most time to measure each backend on a visit.")
    ] = 1.0,
    precision: Annotated[
        float,
        typer.Option(
            min=0, help="End a visit once every median's 95 % interval is within so many %."
        ),
    ] = 2.0,
    visits: Annotated[int, typer.Option(min=1, help="Go through all problems so many times.")] = 1,
    allocator: Annotated[
        Allocator,
        typer.Option(help="keep: freed memory stays in the process; system: malloc's own way."),
    ] = "keep",
    stages: Annotated[
        bool, typer.Option("--stages", help="Time each stage apart as well.")
    ] = False,
    list_only: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results in -o.")] = False,
) -> None:
    """Measure problems on several backends, each checked against the reference first."""
    from dnnsep.sweep.config import Overrides, backend_names, load_sweep
    from dnnsep.sweep.machine import default_threads, fingerprint

    try:
        names = [name for text in backend or [] for name in backend_names(text)]
        dtypes = [d.value for d in dtype or ()]
        caches: list[Cache] = ["cold" if c is CacheState.cold else "hot" for c in cache or ()]
        overrides = Overrides(names, threads or (), dtypes, batch or (), caches)
        plan = load_sweep(config, overrides, default_threads())
    except ValueError as error:
        bad_input(error)
    if plan.left_out:
        typer.echo(f"{plan.left_out} lines of shape files are not separable: left out", err=True)
    if list_only:
        for case in plan.cases:
            line = f"{case.problem} threads {case.threads} {case.cache}: {', '.join(case.backends)}"
            typer.echo(line + (f"  # {case.name}" if case.name else ""))
        return

    from dnnsep.report.machine import head
    from dnnsep.sweep.results import Results
    from dnnsep.sweep.runner import Effort, Runner

    settings = {
        "config": config,
        "backends": plan.backends,
        "seconds": seconds,
        "precision_percent": precision,
        "visits": visits,
        "stages": stages,
        "allocator": allocator,
        "caches": plan.caches,
    }
    results = Results(title=plan.title, fingerprint=fingerprint(), settings=settings)
    path = output or Path(_default_name(plan.title))
    if resume:
        results = _resume(path if output else None, results)
    elif path.exists():
        bad_input(f"{path}: exists; add --resume to go on with it, or choose another name")
    elif not path.parent.is_dir():
        bad_input(f"{path}: no such directory")
    for count in plan.threads:
        if count not in results.roofs and (measured := measure_roofs(count)):
            results.roofs[count] = measured
            typer.echo(head(measured), err=True)
    effort = Effort(seconds, precision / 100, visits, stages)
    runner = Runner(effort, allocator, results.roofs, probe_cache=len(plan.caches) == 1)
    stopped = _measure(plan.cases, visits, results, path, runner)
    _print_results(results, output_format)
    typer.echo(f"results: {path}" + (" (stopped; --resume goes on)" if stopped else ""), err=True)
    if stopped:
        raise typer.Exit(130)
    if any(record.status in ("incorrect", "failed") for record in results.records):
        raise typer.Exit(1)


def _measure(cases: list[Case], visits: int, results: Results, path: Path, runner: Runner) -> bool:
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
    try:
        with runner, Progress(*columns, console=console(True)) as bar:
            task = bar.add_task("", total=len(cases) * visits)
            for visit, case in itertools.product(range(visits), cases):
                step = lambda text: bar.update(task, description=text)  # noqa: E731
                records |= {r.key: r for r in runner.run(case, records, visit, step)}
                results.records = list(records.values())
                results.workers |= runner.workers
                results.save(path)
                bar.advance(task)
    except KeyboardInterrupt:
        results.save(path)
        return True
    return False


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


def _print_results(results: Results, output_format: str) -> None:
    from dnnsep.report import table

    if output_format == "json":
        typer.echo(results.to_json(), nl=False)
    elif output_format == "csv":
        typer.echo(table.as_csv(results), nl=False)
    elif output_format == "markdown":
        typer.echo(table.as_markdown(results))
    else:
        console().print(table.as_rich(results))
        for line in table.summary(results):
            typer.echo(line)


def _default_name(title: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "sweep"
    return f"dnnsep-{words}-{datetime.now():%Y%m%d-%H%M%S}.json"
