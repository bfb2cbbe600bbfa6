"""Defines ``dnnsep tune``, which finds the fastest plans of the fused kernel and keeps them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dnnsep.cli.common import MOST_THREADS, AsJson, ProblemDtype, bad_input, console
from dnnsep.cli.measure import BarObserver
from dnnsep.cli.sweep import Configs, load

if TYPE_CHECKING:
    from dnnsep.block import Block
    from dnnsep.codegen.plan import Plan
    from dnnsep.models.tune import TunedCascade
    from dnnsep.sweep.tune import Tuned


def tune(
    config: Configs,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, max=MOST_THREADS, help="Instead of the file's.")
    ] = None,
    dtype: Annotated[list[ProblemDtype] | None, typer.Option(help="Instead of the file's.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Measure every plan, and how far behind the default one is."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure plans of the fused kernel for longer than a layer's preparation does; keep the best.

    Of a block its cascades are measured against its layers one after the other, seven times as
    optimize does it once; kept is what five of the measurements say.

    They are kept in your cache folder (DNNSEP_CACHE_DIR, or the system's place for caches) for this
    CPU, this version, the problem and the number of threads. Each is printed and kept as soon as it
    is found, but not kept where the machine was not quiet. Ctrl-C keeps those found so far.
    """
    from dnnsep.backends.fused import FusedBackend
    from dnnsep.host.machine import cpus_for

    plan = load(config, ["fused"], threads, dtype, batch, None)
    if plan.blocks and every:
        bad_input(f"--all: of single layers only, {plan.blocks[0].block} is a block")
    cases = plan.cases
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
    cpus = {case.threads: cpus_for(case.threads) for case in plan.all_cases}
    jobs = list(dict.fromkeys((case.problem, case.threads) for case in cases))
    found: list[Tuned] = []
    blocks = list(dict.fromkeys((case.block, case.threads) for case in plan.blocks))
    bar = BarObserver(len(jobs) + len(blocks))
    try:
        for problem, count in jobs:
            with bar:
                found.append(measure(problem, cpus[count], every, bar.step))
                bar.advance()
            _print(str(problem), count, found[-1], as_json)
        for block, count in blocks:
            _tune_block(block, cpus[count], bar, as_json)
    except ValueError as error:
        typer.echo(f"dnnsep: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped: the plans found before are kept", err=True)
        raise typer.Exit(130) from None
    finally:
        if every and len(found) > 1:
            _print_summary(found, as_json)


def _tune_block(block: Block, cpus: list[int], bar: BarObserver, as_json: bool) -> None:
    """Measures a block's cascades and prints them."""
    from dataclasses import asdict

    from dnnsep.models.tune import tune as measure

    with bar:
        found = measure(block, cpus, bar.step)
        bar.advance()
    if as_json:
        cascades = [asdict(cascade) for cascade in found]
        line = {"block": str(block), "threads": len(cpus), "cascades": cascades}
        typer.echo(json.dumps(line))
        return
    for cascade in found:
        typer.echo(f"{block} threads {len(cpus)}: {_cascade_line(cascade)}")
    if not found:
        typer.echo(f"{block} threads {len(cpus)}: no layers in a row whose data leave the caches")


def _cascade_line(cascade: TunedCascade) -> str:
    us = cascade.cascade_us
    times = f"{cascade.layer_by_layer_us:.1f} us one after the other, "
    times += "no cascade was timed" if us is None else f"{us:.1f} us as the fastest cascade"
    now, before = (
        "a cascade" if taken else "no cascade" for taken in (cascade.taken, cascade.before)
    )
    kept = f"{now} now" if cascade.kept else f"not kept, the measurements differ: {now} still"
    layers = " and ".join(cascade.problems)
    return f"{layers}: {times}; {kept} ({cascade.agreeing} measurements agree), {before} before"


def _print(problem: str, threads: int, tuned: Tuned, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_as_dict(problem, threads, tuned)))
    else:
        console().print(_as_line(problem, threads, tuned), highlight=False, soft_wrap=True)


def _as_line(problem: str, threads: int, tuned: Tuned) -> str:
    count = len(tuned.times)
    gain = "the model's choice"
    if tuned.best != next(iter(tuned.times)):
        gain = f"{tuned.gain:.2f} times as fast as the model's choice"
    line = (
        f"{problem} threads {threads}: {tuned.times[tuned.best]:.1f} us, {_name(tuned.best)}: "
        f"{gain}, of {count} plan{'s' if count > 1 else ''}"
    )
    for name, plan in (("the default", tuned.default), ("the model's choice", tuned.model)):
        if plan is not None:
            line += f"; {name} ({_name(plan.plan)}) is {plan.share:.1%} behind the fastest"
    return line + ("" if tuned.kept else "; not kept, the machine was not quiet")


def _name(plan: Plan) -> str:
    parts = f"{plan.pixel_parts}x{plan.channel_parts}"
    return f"tiles of {plan.tile} x {plan.pixels} pixels, split {parts}"


def _as_dict(problem: str, threads: int, tuned: Tuned) -> dict[str, object]:
    def entry(plan: Plan) -> dict[str, int]:
        names = ("tile", "pixel_parts", "channel_parts", "overlap")
        return {name: getattr(plan, name) for name in names}

    return {
        "problem": problem,
        "threads": threads,
        "best": entry(tuned.best),
        "kept": tuned.kept,
        "plans": [{**entry(plan), "us": round(us, 2)} for plan, us in tuned.times.items()],
        **{
            name: {**entry(plan.plan), "behind": round(plan.share, 4)}
            for name, plan in (("default", tuned.default), ("model", tuned.model))
            if plan is not None
        },
    }


def _print_summary(found: list[Tuned], as_json: bool) -> None:
    """Prints how far the default plans and the model's choices are behind the fastest plans, of the
    problems that were measured while the machine was quiet."""
    from dnnsep.measure.stats import geomean

    quiet = [tuned for tuned in found if tuned.kept]
    summary = {}
    for name in ("default", "model") if quiet else ():
        shares = [getattr(tuned, name).share for tuned in quiet]
        mean = geomean([1 + share for share in shares]) - 1
        summary[name] = {"worst": round(max(shares), 4), "geomean": round(mean, 4)}
    if as_json:
        counts = {"problems": len(quiet), "not_quiet": len(found) - len(quiet)}
        typer.echo(json.dumps({**counts, "behind": summary}))
        return
    texts = [
        f"the {name} is {of['geomean']:.1%} behind the fastest plan (geometric mean), "
        f"{of['worst']:.1%} at worst"
        for name, of in summary.items()
    ]
    head = f"{len(quiet)} of {len(found)} problems measured on a quiet machine"
    typer.echo("; ".join([head, *texts]))
