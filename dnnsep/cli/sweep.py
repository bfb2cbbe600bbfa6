"""``dnnsep sweep``: measure, save as it goes, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dnnsep.cli.common import CacheState, Dtype, bad_input
from dnnsep.cli.measure import (
    Memory,
    Output,
    Precision,
    Resume,
    Seconds,
    Shown,
    Visits,
    measure,
)

if TYPE_CHECKING:
    from dnnsep.sweep.results import Cache


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
    output: Output = None,
    shown: Shown = "table",
    seconds: Seconds = 1.0,
    precision: Precision = 2.0,
    visits: Visits = 1,
    allocator: Memory = "keep",
    stages: Annotated[
        bool, typer.Option("--stages", help="Time each stage apart as well.")
    ] = False,
    list_only: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
    resume: Resume = False,
) -> None:
    """Measure problems on several backends, each checked against the reference first."""
    from dnnsep.host.machine import default_threads
    from dnnsep.sweep.config import Overrides, backend_names, load_sweep

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

    from dnnsep.sweep.node import Effort

    effort = Effort(seconds, precision / 100, visits, stages)
    settings = {"config": config, "backends": plan.backends}
    measure(plan.cases, plan.title, settings, effort, allocator, output, resume, shown)
