"""Defines the commands that look at a problem, the backends or the machine."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnnsep.cli.common import MOST_THREADS, AsJson, ProblemDtype, bad_input, console

if TYPE_CHECKING:
    from dnnsep.codegen.lang.isa import Isa
    from dnnsep.measure.roofs import Roofs
    from dnnsep.problem import Problem


class Dump(str, Enum):
    """The forms in which the fused kernel's code can be printed."""

    ir = "ir"
    asm = "asm"


def explain(
    descriptor: Annotated[
        str,
        typer.Argument(
            help="A problem, e.g. mb1ic64oc128ih112kh3ph1, or a block, e.g. "
            "convnext_mb1ic96ex384ih56kh7."
        ),
    ],
    backend: Annotated[
        str, typer.Option(help="A backend, e.g. ipex or ipex:pointwise=conv1x1.")
    ] = "auto",
    dtype: Annotated[ProblemDtype | None, typer.Option(help="Instead of the descriptor's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=MOST_THREADS)] = None,
    as_json: AsJson = False,
    dump: Annotated[
        Dump | None, typer.Option(help="Print the fused kernel's code instead of running it.")
    ] = None,
) -> None:
    """Run a problem once in a process of its own and show what ran: by oneDNN's log, or the fused
    kernel's plan. Of a block show each kernel that optimize makes of it, and its cascades."""
    import dataclasses

    from dnnsep.backends import get_backend
    from dnnsep.block import is_block
    from dnnsep.host.machine import default_threads
    from dnnsep.problem import Problem
    from dnnsep.report.explain import as_text
    from dnnsep.sweep.client import WorkerError
    from dnnsep.sweep.explain import explain as run

    if is_block(descriptor):
        if dump or backend != "auto":
            bad_input("--backend and --dump: only of single layers; a block is run by optimize")
        _explain_block(descriptor, dtype, threads or default_threads(), as_json)
        return
    try:
        problem = Problem.parse(descriptor)
        if dtype:
            problem = dataclasses.replace(problem, dtype=dtype.value)
        name = get_backend(backend).name
        if dump and name != "fused":
            raise ValueError(f"--dump: shows the code of the backend fused, not of {name}")
    except ValueError as error:
        bad_input(error)
    if dump:
        typer.echo(_code(problem, threads or default_threads(), dump))
        return
    try:
        answer = run(problem, name, threads or default_threads())
    except WorkerError as error:
        typer.echo(f"{name} on {problem}: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(answer, indent=1))
    else:
        console().print(as_text(answer))
    if not answer.get("correct", False):
        raise typer.Exit(1)


def _explain_block(
    descriptor: str, dtype: ProblemDtype | None, threads: int, as_json: bool
) -> None:
    """Prints what runs a block; ends the command where it does not run as one network."""
    import dataclasses

    from dnnsep.block import Block
    from dnnsep.host.machine import cpus_for
    from dnnsep.models.explain import explain as run
    from dnnsep.report.explain_block import as_dict, as_text

    try:
        block = Block.parse(descriptor)
        if dtype:
            block = dataclasses.replace(block, dtype=dtype.value)
    except ValueError as error:
        bad_input(error)
    try:
        explained = run(block, cpus_for(threads))
    except (RuntimeError, ValueError) as error:
        typer.echo(f"dnnsep: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(as_dict(explained), indent=1))
    else:
        console().print(as_text(explained), highlight=False)


def _code(problem: Problem, threads: int, dump: Dump) -> str:
    """Returns the code of the fused kernel; ends the command where there is none."""
    from dnnsep.codegen.choose import choose
    from dnnsep.codegen.kernel import Specialization
    from dnnsep.codegen.lang.isa import this_isa
    from dnnsep.codegen.lang.jit import assembly

    try:
        plan = choose(problem, this_isa(), threads)
    except (RuntimeError, ValueError) as error:
        typer.echo(f"fused: {error}", err=True)
        raise typer.Exit(1) from None
    module = Specialization.of(problem, plan).module()
    return str(module) if dump is Dump.ir else assembly(module, plan.isa.target)


def cost(
    descriptor: Annotated[list[str], typer.Argument(help="Problems, e.g. mb1ic3oc64ih228kh5sh2.")],
    as_json: AsJson = False,
) -> None:
    """Count a layer's parameters, operations and bytes; a separable or depthwise layer's also
    against an ordinary convolution's."""
    from dnnsep.problem import Problem
    from dnnsep.report.cost import as_dict, as_table

    try:
        problems = [Problem.parse(text) for text in descriptor]
    except ValueError as error:
        bad_input(error)
    if as_json:
        typer.echo(json.dumps([as_dict(problem) for problem in problems], indent=1))
    else:
        for problem in problems:
            console().print(as_table(problem))


def backends(
    run: Annotated[
        bool,
        typer.Option("--run", help="Run a small problem on each: takes about a minute."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say for each backend whether it is installed, or why not, and its version; with --run start
    each and say which oneDNN ran."""
    from dnnsep.host.machine import default_threads, fingerprint
    from dnnsep.report.backends import as_table

    if run:
        from dnnsep.sweep.explain import survey

        found = survey()
    else:
        found = _installed()
    answers = {
        "backends": found,
        "ran": run,
        "machine": fingerprint(),
        "default_threads": default_threads(),
    }
    if as_json:
        typer.echo(json.dumps(answers, indent=1))
    else:
        console().print(as_table(answers), highlight=False)


def _installed() -> dict[str, dict[str, Any]]:
    """Returns what each backend finds installed, under ``reason`` or ``unavailable``; it looks at
    versions and imports no framework."""
    from dnnsep.backends import BACKENDS, get_backend

    verdicts = {name: get_backend(name).available() for name in BACKENDS}
    return {
        name: {"reason" if verdict else "unavailable": verdict.reason}
        for name, verdict in verdicts.items()
    }


def machine(
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MOST_THREADS, help="[default: the physical cores]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show this machine's fingerprint, measure its roofs (multiply-adds, memory bandwidth), and
    show the rates of the fused kernel's ways of multiplying."""
    from dnnsep.codegen.lang.isa import this_isa, why_no_tiles
    from dnnsep.codegen.rates import rates
    from dnnsep.host.machine import default_threads, fingerprint
    from dnnsep.report.machine import as_text, dot_table

    try:
        isa: Isa | None = this_isa()
    except RuntimeError:  # measure_roofs says it
        isa = None
    except ValueError as error:
        bad_input(error)
    measured = [roofs for t in threads or [default_threads()] if (roofs := measure_roofs(t))]
    known = rates(isa) if isa is not None and measured else None
    described = fingerprint()
    if as_json:
        dumped = [roofs.model_dump() for roofs in measured]
        dots = known.dots if known is not None else {}
        found = {
            "fingerprint": described,
            "no_tiles": why_no_tiles() or None,
            "roofs": dumped,
            "dots": {name: rate.as_dict() for name, rate in dots.items()},
        }
        typer.echo(json.dumps(found, indent=1))
    else:
        shown = as_text(described, measured, why_no_tiles())
        console().print(shown, highlight=False)
        if known is not None:
            console().print(dot_table(known), highlight=False)
    if not measured:
        raise typer.Exit(1)


def measure_roofs(threads: int) -> Roofs | None:
    """Returns the roofs of so many threads, or prints why there are none and returns None."""
    from dnnsep.host.machine import cpus_for
    from dnnsep.measure.calibrate import Calibrator

    try:
        with Calibrator(cpus_for(threads)) as calibrator:
            return calibrator.roofs()
    except RuntimeError as error:
        typer.echo(f"no roofs: {error}", err=True)
        return None
