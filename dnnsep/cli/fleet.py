"""Sweeps over several machines, and ``dnnsep fleet``, which lists them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnnsep.cli.common import AsJson, bad_input, console
from dnnsep.cli.measure import BarObserver, Format, default_name, finish, print_results

if TYPE_CHECKING:
    from dnnsep.sweep.fleet import Machine
    from dnnsep.sweep.rayfleet import RayFleet
    from dnnsep.sweep.session import Assignment


def fleet(
    address: Annotated[str, typer.Argument(help="A Ray cluster's, or local to start one here.")],
    as_json: AsJson = False,
) -> None:
    """List the machines of a Ray cluster: what they are, and whether they can measure."""
    from dnnsep.sweep.fleet import chosen

    cluster = _connected(address)
    try:
        machines = cluster.machines()
    finally:
        cluster.close()
    try:
        names = {m.id: name for name, group in chosen(machines, "each").items() for m in group}
    except ValueError:
        names = {}
    if as_json:
        told = [
            {"host": m.host, "kind": names.get(m.id), "reason": m.reason, "facts": m.facts}
            for m in machines
        ]
        typer.echo(json.dumps(told, indent=1))
    else:
        console().print(_table(machines, names))
    if not names:
        raise typer.Exit(1)


def _table(machines: Sequence[Machine], names: dict[str, str]) -> Any:
    from rich.table import Table

    table = Table("host", "kind", "CPU", "cores", "memory GiB", "torch", "health")
    for machine in machines:
        facts = machine.facts
        table.add_row(
            machine.host,
            names.get(machine.id, ""),
            str(facts.get("cpu", "")),
            str(facts.get("cores", "")),
            f"{facts['memory_bytes'] / 2**30:.0f}" if facts else "",
            str(facts.get("packages", {}).get("torch", "")),
            machine.reason or "ready",
        )
    return table


def measure_on(
    fleet: tuple[str, str],
    assignment: Assignment,
    output: Path | None,
    resume: bool,
    shown: Format,
) -> None:
    """Measure on the machines of a cluster, ``fleet`` being its address and which ones; save as it
    goes, print machine by machine, and exit as the commands do."""
    from dnnsep.sweep.fleet import FleetSession
    from dnnsep.sweep.session import SessionError

    if resume and output is None:
        bad_input("--resume: name the results to go on with, -o FILE")
    address, on = fleet
    cluster = _connected(address)
    path = output or Path(default_name(assignment.title))
    try:
        session = FleetSession(assignment, cluster, on, path, resume)
    except SessionError as error:
        cluster.close()
        bad_input(error)
    terminal = BarObserver(session.total)
    with terminal:
        stopped = session.run(terminal)
    for name, results in session.results.machines.items():
        if shown == "table":
            typer.echo(f"\n{name}")
        print_results(results, shown)
    finish(session.results.records, path, stopped)


def _connected(address: str) -> RayFleet:
    from dnnsep.sweep.rayfleet import RayFleet

    try:
        return RayFleet(address)
    except ValueError as error:
        bad_input(error)
