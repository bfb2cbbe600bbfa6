"""Defines ``dnnsep tune``, which finds the fastest plans of the fused kernel and keeps them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dnnsep.cli.common import AsJson, Dtype, console
from dnnsep.cli.sweep import load

if TYPE_CHECKING:
    from dnnsep.sweep.tune import Tuned


def tune(
    config: Annotated[
        list[str], typer.Argument(help="YAML sweep files, benchdnn shape files or descriptors.")
    ],
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Instead of the file's.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the plans of the fused kernel that its cost model finds close; keep the fastest.

    They are kept in your cache folder (DNNSEP_CACHE_DIR, or the system's place for caches) for this
    CPU, this version, the problem and the number of threads; each is kept as soon as it is found.
    """
    from dnnsep.backends.fused import FusedBackend
    from dnnsep.host.machine import cpus_for

    cases = load(config, ["fused"], threads, dtype, batch, None).cases
    backend = FusedBackend()
    for problem in dict.fromkeys(case.problem for case in cases):
        verdict = backend.available() and backend.supports(problem)
        if not verdict:
            typer.echo(f"fused cannot run {problem}: {verdict.reason}", err=True)
            raise typer.Exit(1)

    from dnnsep.host.allocator import keep_pages
    from dnnsep.sweep.tune import tune as measure

    keep_pages()
    # Measuring pins this process, so the CPUs it may run on are asked for before.
    cpus = {case.threads: cpus_for(case.threads) for case in cases}
    for problem, count in dict.fromkeys((case.problem, case.threads) for case in cases):
        try:
            tuned = measure(problem, cpus[count])
        except ValueError as error:
            typer.echo(f"dnnsep: {error}", err=True)
            raise typer.Exit(1) from None
        if as_json:
            typer.echo(json.dumps(_as_dict(str(problem), count, tuned)))
        else:
            console().print(_as_line(str(problem), count, tuned), highlight=False)


def _as_line(problem: str, threads: int, tuned: Tuned) -> str:
    best = tuned.best
    split = f"{best.pixel_parts}x{best.channel_parts}"
    plans = f"{len(tuned.times)} plan{'s' if len(tuned.times) > 1 else ''}"
    outcome = (
        f"{tuned.gain:.2f} times the model's choice" if tuned.gain > 1 else "the model's choice"
    )
    return (
        f"{problem} threads {threads}: {tuned.times[best]:.1f} us, tiles of {best.tile} x "
        f"{best.pixels} pixels, split {split}: {outcome}, of {plans}"
    )


def _as_dict(problem: str, threads: int, tuned: Tuned) -> dict[str, object]:
    def entry(plan: object) -> dict[str, int]:
        return {name: getattr(plan, name) for name in ("tile", "pixel_parts", "channel_parts")}

    return {
        "problem": problem,
        "threads": threads,
        "best": entry(tuned.best),
        "plans": [{**entry(plan), "us": round(us, 2)} for plan, us in tuned.times.items()],
    }
