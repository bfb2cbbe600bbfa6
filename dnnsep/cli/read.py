"""Defines the commands that read results: compare, report, export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dnnsep.cli.common import AsJson, bad_input, console, one_line

if TYPE_CHECKING:
    from dnnsep.report.compare import Comparison

ResultsFile = Annotated[Path, typer.Argument(help="Results of a sweep or of perf/, as JSON.")]


def compare(
    base: ResultsFile,
    new: ResultsFile,
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

    A case is called faster or slower only where its whole 95 % interval lies beyond the threshold,
    after correction for the number of cases; the rest is unsure, with the reason and what to do.
    Measure both with `dnnsep sweep … --visits 8`. Results of several machines are compared machine
    by machine; those of a single one with those of any other single one.
    """
    from dnnsep.report import compare_table
    from dnnsep.report.compare import compare as compare_results
    from dnnsep.report.compare import failures, how_to_compare, paired
    from dnnsep.report.load import load_machines, named_alike

    words = [word.strip() for word in fail_on.split(",") if word.strip()]
    told, failed = {}, []
    try:
        before, after = named_alike(load_machines(base), load_machines(new))
        if not before.keys() & after.keys():
            raise ValueError(f"{base} and {new}: no machine is in both")
        for name, (old, now) in paired(before, after).items():
            how = how_to_compare(old, now, normalize)
            comparisons = compare_results(old, now, threshold / 100, how)
            told[name] = (how, comparisons)
            failed += [(name, comparison) for comparison in failures(comparisons, words)]
    except ValueError as error:
        bad_input(error)
    if as_json:
        found = {
            name: {"compared": how, "cases": compare_table.as_dicts(comparisons)}
            for name, (how, comparisons) in told.items()
        }
        typer.echo(json.dumps(found.get("", {"machines": found}), indent=1))
    else:
        for name, (how, comparisons) in told.items():
            _print_comparisons(name, how, comparisons, output_format)
    for name, comparison in failed:
        where = f"{one_line(name)}: " if name else ""
        typer.echo(f"failed: {where}{compare_table.line(comparison)}", err=True)
    if failed:
        raise typer.Exit(1)


def _print_comparisons(
    machine: str, how: str, comparisons: Sequence[Comparison], output_format: str
) -> None:
    from dnnsep.report import compare_table
    from dnnsep.report.markdown import escaped

    if output_format == "markdown":
        typer.echo(f"### {escaped(machine)}\n" if machine else "", nl=bool(machine))
        typer.echo(compare_table.as_markdown(comparisons))
        return
    if machine:
        typer.echo(one_line(machine))
    if how == "roof":
        typer.echo("shares of the roof are compared, not times")
    console().print(compare_table.as_rich(comparisons))
    typer.echo(compare_table.summary(comparisons))


def report(
    results: Annotated[list[Path], typer.Argument(help="Results of sweeps or of perf/, as JSON.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file. [default: report.html; markdown: stdout]"),
    ] = None,
    output_format: Annotated[
        Literal["html", "markdown"],
        typer.Option("--format", help="A page that works offline, or text for a pull request."),
    ] = "html",
) -> None:
    """Show results as one page, which begins with which backend is fastest and by how much.

    Charts, tables, warnings and the commands that measure again follow, and then the machine. Of
    several machines it shows where the fastest backend changes, and their rooflines side by side.
    """
    from dnnsep.report.html import as_html
    from dnnsep.report.load import labels_of_files, load_machines
    from dnnsep.report.markdown import as_report

    try:
        # A machine's name is enough where there is only one file.
        files = [
            (machine if machine and len(results) == 1 else f"{label} {machine}".strip(), of_machine)
            for label, path in zip(labels_of_files(results), results, strict=True)
            for machine, of_machine in load_machines(path).items()
        ]
        if not files:
            raise ValueError(f"{results[0]}: machines: must not be empty")
        if output_format == "html":
            text, output = as_html(files), output or Path("report.html")
        else:
            text = as_report(files)
    except ValueError as error:
        bad_input(error)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        bad_input(f"{output}: {error.strerror}")
    typer.echo(f"report: {output}", err=True)


def export(
    results: ResultsFile,
    to: Annotated[Literal["csv", "parquet"], typer.Option(help="The file's format.")] = "csv",
    samples: Annotated[
        bool, typer.Option("--samples", help="A row a timed call instead of a row a record.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file. [default: beside RESULTS]")
    ] = None,
) -> None:
    """Write results as a tidy table for other tools: a row a record, or a row a call.

    The machine's name is in a column, where the results are of several.
    """
    from dnnsep.report.export import export as write
    from dnnsep.report.load import load_machines

    path = output or results.with_suffix(f".samples.{to}" if samples else f".{to}")
    try:
        write(load_machines(results), path, to, samples)
    except ValueError as error:
        bad_input(error)
    except OSError as error:
        bad_input(f"{path}: {error.strerror}")
    typer.echo(f"export: {path}", err=True)
