"""Commands that read results: compare, report, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from dnnsep.cli.common import AsJson, bad_input, console

Results = Annotated[Path, typer.Argument(help="Results of a sweep or of perf/, as JSON.")]


def compare(
    base: Results,
    new: Results,
    threshold: Annotated[
        float, typer.Option(min=0, help="The least difference that counts, in %.")
    ] = 5.0,
    fail_on: Annotated[
        str,
        typer.Option(
            help="Verdicts that end with exit code 1, separated by commas: slower, faster, "
            "unsure, impl-changed, incorrect, failed, missing."
        ),
    ] = "",
    normalize: Annotated[
        Literal["time", "roof"] | None,
        typer.Option(help="What to compare. [default: time, or roof between machines]"),
    ] = None,
    output_format: Annotated[
        Literal["table", "markdown"], typer.Option("--format", help="What is printed.")
    ] = "table",
    as_json: AsJson = False,
) -> None:
    """Say for each case whether NEW is the same as BASE, faster, slower or unsure.

    A case is called faster or slower when a rank test of the visits finds a difference and it is
    beyond the threshold: measure both with `dnnsep sweep … --visits 5`.
    """
    from dnnsep.report import compare_table
    from dnnsep.report.compare import compare as compare_results
    from dnnsep.report.compare import failures, how_to_compare
    from dnnsep.report.load import load

    words = [word.strip() for word in fail_on.split(",") if word.strip()]
    try:
        before, after = load(base), load(new)
        how = how_to_compare(before, after, normalize)
        found = compare_results(before, after, threshold / 100, how)
        failed = failures(found, words)
    except ValueError as error:
        bad_input(error)
    if as_json:
        typer.echo(json.dumps({"compared": how, "cases": compare_table.as_dicts(found)}, indent=1))
    elif output_format == "markdown":
        typer.echo(compare_table.as_markdown(found))
    else:
        if how == "roof":
            typer.echo("shares of the roof are compared, not times")
        console().print(compare_table.as_rich(found))
        typer.echo(compare_table.summary(found))
    for comparison in failed:
        typer.echo(f"failed: {compare_table.line(comparison)}", err=True)
    if failed:
        raise typer.Exit(1)


def report() -> None:
    """Later."""


def export() -> None:
    """Later."""
