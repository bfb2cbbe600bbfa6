"""Sweeps over several machines, and ``dnnsep fleet``, which lists them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnnsep.cli.common import AsJson, bad_input, console
from dnnsep.cli.measure import BarObserver, Format, default_name, finish, print_results

# A machine is in doubt that takes so many times as long for the canary as another of its kind.
_MUCH_SLOWER = 1.1

if TYPE_CHECKING:
    from dnnsep.sweep.checkup import Checkup
    from dnnsep.sweep.fleet import Machine
    from dnnsep.sweep.rayfleet import RayFleet
    from dnnsep.sweep.session import Assignment


def fleet(
    address: Annotated[str, typer.Argument(help="A Ray cluster's, or local to start one here.")],
    measure: Annotated[
        bool,
        typer.Option(help="Measure each machine's roofs and a small problem, all at once (10 s)."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """List the machines of a Ray cluster: what they are, what they reach, and whether they can
    measure. Exits with 1 where none can, or one that can is in doubt.
    """
    from dnnsep.report.machine import head
    from dnnsep.sweep.fleet import chosen

    cluster = _connected(address)
    try:
        machines = cluster.machines()
        try:
            kinds = {m.id: name for name, of in chosen(machines, "each").items() for m in of}
        except ValueError:
            kinds = {}
        ready = [machine for machine in machines if machine.id in kinds]
        checkups = cluster.check_up(ready) if measure else {}
    finally:
        cluster.close()
    listed = [_listed(machine, kinds, checkups) for machine in machines]
    if as_json:
        typer.echo(json.dumps([one.as_dict() for one in listed], indent=1))
    else:
        console().print(_table(listed))
        for one in listed:
            if one.checkup and one.checkup.roofs:
                typer.echo(f"{one.machine.host} {one.kind}: {head(one.checkup.roofs)}")
    if not kinds or any(one.doubts for one in listed if one.kind):
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Listed:
    """A machine, the name of its kind where it can measure, its check-up where there was one, and
    what is wrong with it."""

    machine: Machine
    kind: str | None
    checkup: Checkup | None
    doubts: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        roofs = self.checkup and self.checkup.roofs
        return {
            "host": self.machine.host,
            "kind": self.kind,
            "reason": self.machine.reason,
            "doubts": self.doubts,
            "canary_us": self.checkup and self.checkup.canary_us,
            "roofs": roofs and roofs.model_dump(),
            "facts": self.machine.facts,
        }


def _listed(
    machine: Machine, kinds: Mapping[str, str], checkups: Mapping[str, Checkup | str]
) -> _Listed:
    kind, checkup = kinds.get(machine.id), checkups.get(machine.id)
    if checkup is None or isinstance(checkup, str):
        return _Listed(machine, kind, None, (checkup,) if checkup else ())
    doubts = checkup.doubts
    alike = [other for name, other in checkups.items() if kinds.get(name) == kind]
    times = [other.canary_us for other in alike if not isinstance(other, str) and other.canary_us]
    if checkup.canary_us and checkup.canary_us > _MUCH_SLOWER * min(times):
        slower = checkup.canary_us / min(times)
        doubts += (f"canary: {slower:.2f} times as slow as the fastest of its kind",)
    return _Listed(machine, kind, checkup, doubts)


def _table(listed: Sequence[_Listed]) -> Any:
    from rich.table import Table

    table = Table("host", "kind", "CPU", "cores", "memory GiB", "torch", "canary µs", "health")
    for one in listed:
        facts = one.machine.facts
        canary = one.checkup and one.checkup.canary_us
        table.add_row(
            one.machine.host,
            one.kind or "",
            str(facts.get("cpu", "")),
            str(facts.get("cores", "")),
            f"{facts['memory_bytes'] / 2**30:.0f}" if facts else "",
            str(facts.get("packages", {}).get("torch", "")),
            f"{canary:.1f}" if canary else "",
            one.machine.reason or "; ".join(one.doubts) or "ready",
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
