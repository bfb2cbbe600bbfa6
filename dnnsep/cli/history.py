"""``dnnsep history``: how cases move from night to night."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dnnsep.cli.common import bad_input, console
from dnnsep.host.inputs import exists, is_folder

if TYPE_CHECKING:
    from dnnsep.report.history import Point

_SUFFIXES = (".json", ".parquet")


def history(
    results: Annotated[
        list[str],
        typer.Argument(help="Results of sweeps or of perf/, parquet exports; folders, patterns."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A page that works offline.")
    ] = None,
    shown: Annotated[
        Literal["table", "markdown", "json"], typer.Option("--format", help="What is printed.")
    ] = "table",
    rate: Annotated[
        float,
        typer.Option(
            min=1e-9,
            max=0.05,
            help="A change has a p-value below this, corrected for being looked at each night: the "
            "false alarms aimed at for each night of a case.",
        ),
    ] = 5e-4,
    fail_on: Annotated[
        Literal["slower"] | None,
        typer.Option(
            help="slower: exit with 1 where the newest level of a case is 2 % or more slower than "
            "its fastest one before. Leave out the nights of a level that is to be forgotten."
        ),
    ] = None,
) -> None:
    """Show where cases became slower or faster for good, and from which version on.

    A change is called after three nights, in a case that has six. With the default rate 1.1 false
    changes were counted in 1 000 nights of made-up cases without any, each night looking at all
    nights until then and counting a change once.
    """
    from dnnsep.report import history_page
    from dnnsep.report.history import histories

    try:
        series = histories(_points(_files(results)), rate)
    except ValueError as error:
        bad_input(error)
    if not series:
        bad_input(f"{', '.join(results)}: no record with a time")
    if shown == "json":
        typer.echo(json.dumps(history_page.as_dicts(series), indent=1))
    elif shown == "markdown":
        typer.echo(history_page.as_markdown(series))
    else:
        console().print(history_page.as_rich(series))
        typer.echo(history_page.summary(series))
    if output is not None:
        try:
            output.write_text(history_page.as_html(series), encoding="utf-8")
        except OSError as error:
            bad_input(f"{output}: {error.strerror}")
        typer.echo(f"history: {output}", err=True)
    failed = [one for one in series if fail_on and one.is_slower]
    for one in failed:
        more = f"{one.times_fastest - 1:+.1%} against its fastest level before"
        typer.echo(f"failed: {one.title}, {one.machine}: {more}", err=True)
    if failed:
        raise typer.Exit(1)


def _files(sources: Sequence[str]) -> list[Path]:
    """Returns the files that sources name: themselves, those in a folder, or those of a pattern.
    Raises ValueError where there is none."""
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if is_folder(path):
            files = [p for p in sorted(path.rglob("*")) if p.suffix in _SUFFIXES]
        elif exists(path):
            files = [path]
        else:
            files = sorted(map(Path, glob.glob(source, recursive=True)))
        if not files:
            raise ValueError(f"{source}: no such file, and no results in it")
        found += files
    return list(dict.fromkeys(found))


def _points(files: Sequence[Path]) -> Iterator[Point]:
    from dnnsep.report.history import points_of, points_of_export
    from dnnsep.report.load import load_machines

    for path in files:
        if path.suffix == ".parquet":
            yield from points_of_export(path)
            continue
        for name, results in load_machines(path).items():
            yield from points_of(results, name)
