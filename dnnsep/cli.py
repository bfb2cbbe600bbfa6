"""The command line. Exit codes: 0 fine, 1 a check failed, 2 bad usage or input."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from dnnsep.sweep.client import Allocator

if TYPE_CHECKING:
    from rich.console import Console

    from dnnsep.sweep.config import Case
    from dnnsep.sweep.results import Results
    from dnnsep.sweep.runner import Runner

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Backend = Annotated[
    str, typer.Option("--backend", help="A backend, e.g. ipex or ipex:pointwise=conv1x1.")
]
Format = Literal["table", "markdown", "csv", "json"]


class Dtype(str, Enum):
    """An option's choices (typer takes no Literal where an option can be repeated)."""

    f32 = "f32"
    bf16 = "bf16"


def _print_version(wanted: bool) -> None:
    if wanted:
        import dnnsep

        typer.echo(dnnsep.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    """Depthwise-separable convolution on x86 CPUs through oneDNN: measure, explain, count."""


@app.command(epilog="Example: `dnnsep sweep configs/quickstart.yaml --backend ipex -o r.json`")
def sweep(
    config: Annotated[
        list[str], typer.Argument(help="YAML sweep files, benchdnn shape files or descriptors.")
    ],
    backend: Annotated[list[str] | None, typer.Option(help="Instead of the file's.")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Instead of the file's.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The results, as JSON. [default: named by time]"),
    ] = None,
    output_format: Annotated[Format, typer.Option("--format", help="What is printed.")] = "table",
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Time to measure each backend on each problem.")
    ] = 0.5,
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
    from dnnsep.sweep.config import Overrides, load_sweep
    from dnnsep.sweep.machine import default_threads, fingerprint

    try:
        names = _backend_names(backend or [])
        dtypes = [d.value for d in dtype or ()]
        overrides = Overrides(names, threads or (), dtypes, batch or ())
        plan = load_sweep(config, overrides, default_threads())
    except ValueError as error:
        _bad_input(error)
    if plan.left_out:
        typer.echo(f"{plan.left_out} lines of shape files are not separable: left out", err=True)
    if list_only:
        for case in plan.cases:
            line = f"{case.problem} threads {case.threads}: {', '.join(case.backends)}"
            typer.echo(line + (f"  # {case.name}" if case.name else ""))
        return

    from dnnsep.sweep.results import Results
    from dnnsep.sweep.runner import Runner

    settings = {
        "config": config,
        "backends": sorted({b for case in plan.cases for b in case.backends}),
        "seconds": seconds,
        "stages": stages,
        "allocator": allocator,
        "cache": "hot",
        "output": "allocated by each call",
    }
    results = Results(title=plan.title, fingerprint=fingerprint(), settings=settings)
    path = output or Path(_default_name(plan.title))
    if resume:
        results = _resume(path if output else None, results)
    elif path.exists():
        _bad_input(f"{path}: exists; add --resume to go on with it, or choose another name")
    elif not path.parent.is_dir():
        _bad_input(f"{path}: no such directory")
    stopped = _measure(plan.cases, results, path, Runner(seconds, stages, allocator))
    _print_results(results, output_format)
    typer.echo(f"results: {path}" + (" (stopped; --resume goes on)" if stopped else ""), err=True)
    if stopped:
        raise typer.Exit(130)
    if any(record.status in ("incorrect", "failed") for record in results.records):
        raise typer.Exit(1)


@app.command(epilog="Example: `dnnsep explain mb1ic64oc128ih112kh3sh1ph1 --backend ipex`")
def explain(
    descriptor: Annotated[str, typer.Argument(help="A problem, e.g. mb1ic64oc128ih112kh3ph1.")],
    backend: Backend = "auto",
    dtype: Annotated[Dtype | None, typer.Option(help="Instead of the descriptor's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Run a problem once in a process of its own and show what oneDNN's log says ran."""
    import dataclasses

    from dnnsep.problem import Problem
    from dnnsep.report.explain import as_text
    from dnnsep.sweep.client import WorkerError
    from dnnsep.sweep.explain import explain as run
    from dnnsep.sweep.machine import default_threads

    try:
        problem = Problem.parse(descriptor)
        if dtype:
            problem = dataclasses.replace(problem, dtype=dtype.value)
        (name,) = _backend_names([backend])
    except ValueError as error:
        _bad_input(error)
    try:
        found = run(problem, name, threads or default_threads())
    except WorkerError as error:
        typer.echo(f"{name} on {problem}: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _console().print(as_text(found))
    if not found.get("correct", False):
        raise typer.Exit(1)


@app.command(epilog="Example: `dnnsep cost mb1ic3oc64ih228kh5sh2`")
def cost(
    descriptor: Annotated[list[str], typer.Argument(help="Problems, e.g. mb1ic3oc64ih228kh5sh2.")],
    as_json: AsJson = False,
) -> None:
    """Parameters, operations and bytes of a separable layer, against an ordinary convolution."""
    from dnnsep.problem import Problem
    from dnnsep.report.cost import as_dict, as_table

    try:
        problems = [Problem.parse(text) for text in descriptor]
    except ValueError as error:
        _bad_input(error)
    if as_json:
        typer.echo(json.dumps([as_dict(problem) for problem in problems], indent=1))
    else:
        for problem in problems:
            _console().print(as_table(problem))


@app.command(epilog="Example: `dnnsep backends --json`")
def backends(as_json: AsJson = False) -> None:
    """Each backend: available or why not, and the versions found by running it."""
    from dnnsep.report.backends import as_table
    from dnnsep.sweep.explain import survey
    from dnnsep.sweep.machine import default_threads, fingerprint

    found = {
        "backends": survey(),
        "machine": fingerprint(),
        "default_threads": default_threads(),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _console().print(as_table(found))


def main() -> None:
    """The entry point."""
    app()


def _measure(cases: list[Case], results: Results, path: Path, runner: Runner) -> bool:
    """Run the cases into results, saving after each. Returns whether Ctrl-C ended it early."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    done = {record.key for record in results.records}
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    try:
        with runner, Progress(*columns, console=_console(True)) as bar:
            task = bar.add_task("", total=len(cases))
            for case in cases:
                step = lambda text: bar.update(task, description=text)  # noqa: E731
                results.records += runner.run(case, done, step)
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
        _bad_input("--resume: name the results to go on with, -o FILE")
    if not path.exists():
        return fresh
    try:
        old = Results.load(path)
    except ValueError as error:
        _bad_input(error)
    for field in ("title", "fingerprint", "settings"):
        before, now = getattr(old, field), getattr(fresh, field)
        if before != now:
            changed = (
                [k for k in now if before.get(k) != now[k]] if isinstance(now, dict) else [now]
            )
            _bad_input(f"{path}: cannot be resumed, its {field} differs ({', '.join(changed)})")
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
        console = _console()
        console.print(table.as_rich(results))
        for line in table.summary(results):
            console.print(line, highlight=False)


def _backend_names(texts: list[str]) -> list[str]:
    from dnnsep.backends import get_backend

    return [get_backend(text).name for text in texts]


def _default_name(title: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "sweep"
    return f"dnnsep-{words}-{datetime.now():%Y%m%d-%H%M%S}.json"


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    # Piped output keeps its columns.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 150)


def _bad_input(error: ValueError | str) -> NoReturn:
    typer.echo(f"dnnsep: {error}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    main()
