"""``dnnsep ab``: two versions of dnnsep against each other, in turns, and the verdicts."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnsep.cli.common import MOST_THREADS, AsJson, CacheState, ProblemDtype, bad_input, console
from dnnsep.cli.common import Dtype as ModelDtype
from dnnsep.cli.measure import BarObserver
from dnnsep.cli.sweep import cache_names, load

if TYPE_CHECKING:
    from dnnsep.report.ab import Finding
    from dnnsep.sweep.case import AnyCase
    from dnnsep.sweep.pairs import PairResults

_VERSION_HELP = "the Python of an environment, or the folder of a checkout."


def ab(
    config: Annotated[
        list[str],
        typer.Argument(help="As for dnnsep sweep; with --models, as for dnnsep bench-model."),
    ],
    base: Annotated[str, typer.Option(help=f"What to compare with: {_VERSION_HELP}")],
    new: Annotated[str, typer.Option(help=f"What is compared: {_VERSION_HELP}")],
    models: Annotated[bool, typer.Option("--models", help="CONFIG are names of models.")] = False,
    engine: Annotated[
        str | None, typer.Option(help="With --models: what they run on. [default: dnnsep]")
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option("--input", help="With --models: the input's shape. [default: their own]"),
    ] = None,
    backend: Annotated[list[str] | None, typer.Option(help="[default: fused]")] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MOST_THREADS, help="[default: the file's, or the physical cores]"),
    ] = None,
    dtype: Annotated[
        list[ProblemDtype] | None,
        typer.Option(help="Instead of the file's. [default with --models: f32]"),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Instead of the file's or the input's.")
    ] = None,
    cache: Annotated[
        list[CacheState] | None,
        typer.Option(help="The caches at each call. [default: the file's, or hot]"),
    ] = None,
    visits: Annotated[
        int,
        typer.Option(min=2, help="Go through all cases so many times, with new processes each."),
    ] = 10,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Calls of each version on a visit to a case, in all.")
    ] = 0.12,
    threshold: Annotated[
        float, typer.Option(min=0, help="The least difference that counts, in %.")
    ] = 1.0,
    fail_on: Annotated[
        str,
        typer.Option(
            help="Verdicts that end with exit code 1, separated by commas: slower, faster, "
            "unsure, impl-changed, incorrect, failed, refused."
        ),
    ] = "slower,incorrect,failed",
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Save all pairs, as JSON. [default: not saved]"),
    ] = None,
) -> None:
    """Say for each case whether NEW is the same as BASE, faster, slower or unsure.

    Workers of both versions take turns on each case, checked against the reference first. With
    new processes on each visit, changes of 2 % are found where comparing two sweeps finds 5 %;
    more visits find less. Ctrl-C prints what there is so far.
    """
    from dnnsep.host.inputs import exists, is_folder
    from dnnsep.host.machine import fingerprint
    from dnnsep.report.ab import FAIL_ON
    from dnnsep.sweep.ab import Plan, Run
    from dnnsep.sweep.client import Interpreter
    from dnnsep.sweep.pairs import PairResults

    words = [word.strip() for word in fail_on.split(",") if word.strip()]
    for word in words:
        if word not in FAIL_ON:
            bad_input(f"--fail-on {word!r}: must be one of {', '.join(FAIL_ON)}")
    if output and exists(output):
        bad_input(f"{output}: exists; choose another name")
    if output and not is_folder(output.parent):
        bad_input(f"{output}: no such directory")
    versions = {}
    for side, text in (("base", base), ("new", new)):
        try:
            versions[side] = Interpreter.parse(text)
        except ValueError as error:
            bad_input(f"--{side} {error}")
    cases: Sequence[AnyCase]
    if models:
        if backend:
            bad_input("--models: takes no --backend; --engine names an engine")
        cases = _models(config, input_shape, threads, batch, dtype, engine or "dnnsep", cache)
    else:
        if engine or input_shape:
            bad_input("--engine and --input: only with --models")
        cases = load(config, backend or ["fused"], threads, dtype, batch, cache).all_cases
    for side, version in versions.items():
        typer.echo(f"{side}: {version.package}", err=True)

    plan = Plan(cases, versions["base"], versions["new"], visits, seconds)
    results = PairResults(
        base=plan.base.package,
        new=plan.new.package,
        fingerprint=fingerprint(),
        settings={"config": config, "visits": visits, "seconds": seconds},
    )
    with BarObserver(plan.total) as bar:
        stopped = Run(plan, results, output).run(bar)
    failed = _print(results, threshold / 100, words, as_json)
    if output:
        typer.echo(f"results: {output}", err=True)
    if stopped:
        typer.echo("stopped: the visits before are kept", err=True)
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def _models(
    names: Sequence[str],
    input_shape: str | None,
    threads: Sequence[int] | None,
    batches: Sequence[int] | None,
    dtypes: Sequence[ProblemDtype] | None,
    engine: str,
    caches: Sequence[CacheState] | None,
) -> Sequence[AnyCase]:
    from dnnsep.cli.model import model_cases
    from dnnsep.host.machine import default_threads
    from dnnsep.models.engines import ENGINES
    from dnnsep.models.names import model_names

    if engine not in ENGINES:
        bad_input(f"--engine {engine!r}: must be one of {', '.join(ENGINES)}")
    try:
        models = model_names(names)
    except ValueError as error:
        bad_input(error)
    # The workers start in other folders.
    places = [os.path.abspath(name) if ".py:" in name else name for name in models]
    counts = threads or [default_threads()]
    try:
        of_models = [ModelDtype(dtype.value) for dtype in dtypes or ()]
    except ValueError:
        bad_input("--dtype: of a model f32, bf16 or int8")
    cases = model_cases(places, input_shape, counts, (engine,), batches or (), of_models)
    return [
        dataclasses.replace(case, cache=c) for case in cases for c in cache_names(caches) or ["hot"]
    ]


def _print(
    results: PairResults, threshold: float, fail_on: Sequence[str], as_json: bool
) -> list[Finding]:
    """Print the verdicts, and return those that the command fails on."""
    from dnnsep.report import ab_table
    from dnnsep.report.ab import failures, geomeans, judge

    findings, means = judge(results, threshold), geomeans(results)
    if as_json:
        found = {"base": results.base, "new": results.new, **ab_table.as_dict(findings, means)}
        typer.echo(json.dumps(found, indent=1))
    else:
        console().print(ab_table.as_rich(findings))
        for text in ab_table.summary(findings, means):
            typer.echo(text)
    failed = failures(findings, fail_on)
    for finding in failed:
        typer.echo(f"failed: {ab_table.line(finding)}", err=True)
    return failed
