"""``dnnsep sweep``: measure, save as it goes, print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dnnsep.cli.common import MOST_THREADS, CacheState, ProblemDtype, bad_input
from dnnsep.cli.fleet import measure_on
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
    from dnnsep.sweep.config import Sweep
    from dnnsep.sweep.results import Cache

Configs = Annotated[
    list[str],
    typer.Argument(
        help="YAML sweep files, shipped ones by name (quickstart), benchdnn shape files or "
        "descriptors, of blocks too (mbconv_mb1ic16ex96oc24ih112kh3sh2_act:relu6)."
    ),
]


def sweep(
    config: Configs,
    backend: Annotated[
        list[str] | None, typer.Option(help="Instead of the file's; peers: all of them.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, max=MOST_THREADS, help="Instead of the file's.")
    ] = None,
    dtype: Annotated[list[ProblemDtype] | None, typer.Option(help="Instead of the file's.")] = None,
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
    wide: Annotated[
        bool, typer.Option("--wide", help="Print the table with all columns, at the end.")
    ] = False,
    list_only: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
    resume: Resume = False,
    ray: Annotated[
        str | None,
        typer.Option(help="Measure on the nodes of this Ray cluster; local: on one started here."),
    ] = None,
    on: Annotated[
        str,
        typer.Option(help="With --ray: each kind of machine once, all, or as isa>=avx512."),
    ] = "each",
) -> None:
    """Measure problems and blocks on several backends, each checked against the reference first."""
    if ray is None and on != "each":
        bad_input("--on: says which machines of a cluster measure, so it needs --ray")
    plan = load(config, backend or (), threads, dtype, batch, cache)
    if list_only:
        for case in plan.all_cases:
            line = f"{case.problem} threads {case.threads} {case.cache}: {', '.join(case.backends)}"
            typer.echo(line + (f"  # {case.name}" if case.name else ""))
        return

    from dnnsep.sweep.node import Effort

    effort = Effort(seconds, precision / 100, visits, stages)
    settings = {"config": config, "backends": plan.backends}
    if ray is not None:
        from dnnsep.sweep.session import Assignment

        assignment = Assignment(plan.title, plan.all_cases, settings, effort, allocator)
        measure_on((ray, on), assignment, output, resume, shown)
        return
    cases = plan.all_cases
    measure(cases, plan.title, settings, effort, allocator, output, resume, shown, wide=wide)


def load(
    config: Sequence[str],
    backends: Sequence[str],
    threads: Sequence[int] | None,
    dtypes: Sequence[ProblemDtype] | None,
    batches: Sequence[int] | None,
    caches: Sequence[CacheState] | None,
) -> Sweep:
    """The cases of a command's CONFIG, with its options in place of the files' own lists.

    Names the lines of shape files that are left out; exits as for bad input where nothing remains.
    """
    from dnnsep.host.machine import default_threads
    from dnnsep.sweep.config import Overrides, load_sweep
    from dnnsep.sweep.entries import backend_names

    try:
        names = [name for text in backends for name in backend_names(text)]
        overrides = Overrides(
            names,
            threads or (),
            [dtype.value for dtype in dtypes or ()],
            batches or (),
            cache_names(caches),
        )
        found = load_sweep(config, overrides, default_threads())
    except ValueError as error:
        bad_input(error)
    for line in found.left_out:
        typer.echo(f"left out: {line}", err=True)
    if not found.all_cases:
        bad_input(f"{', '.join(config)}: every line is left out")
    return found


def cache_names(caches: Sequence[CacheState] | None) -> list[Cache]:
    """The cache states as results name them."""
    return ["cold" if cache is CacheState.cold else "hot" for cache in caches or ()]
