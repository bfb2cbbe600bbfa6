"""Ray as what brings visits to machines: the only file that knows it, and imports it when used."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from dnnsep.sweep.case import AnyCase
from dnnsep.sweep.checkup import Checkup, check_up
from dnnsep.sweep.fleet import Machine, MachineLostError, VisitFailedError, with_other_version
from dnnsep.sweep.host import Host, Visit, facts
from dnnsep.sweep.results import Record
from dnnsep.sweep.session import Assignment

# In which a machine has to say what it is.
_FACTS_SECONDS = 120
# In which it has to have measured itself: where a sweep measures on it, it has to wait.
_CHECKUP_SECONDS = 60
# To answer at all.
_REACH_SECONDS = 10


def _reach(address: str) -> None:
    """Raises ValueError where nothing answers at a host's port: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.removeprefix("ray://"), int(port)), _REACH_SECONDS).close()
    except OSError as error:
        raise ValueError(f"--ray {address}: {error.strerror or error}") from None


class RayFleet:
    """The nodes of a Ray cluster; on each at most one sweep measures, one visit at a time."""

    def __init__(self, address: str, host: Callable[..., Any] = Host) -> None:
        """``address`` is that of a cluster, or ``local`` to start one here; ``host`` is what
        measures on a node.

        Raises ValueError where Ray is not installed or there is no such cluster.
        """
        try:
            import ray
        except ImportError:
            raise ValueError("--ray: ray is not installed (extra: ray)") from None
        self._ray: Any = ray
        self._host = host
        self._hosts: dict[str, Any] = {}
        self._assignment: Assignment | None = None
        where = {"include_dashboard": False} if address == "local" else {"address": address}
        _reach(address)
        try:
            ray.init(
                **where,
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace="dnnsep",
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"--ray {address}: {str(error).splitlines()[0]}") from None

    def machines(self) -> list[Machine]:
        """Returns the nodes that are alive, with what each says of itself."""
        ray = self._ray
        ask = ray.remote(num_cpus=0, max_retries=0)(facts)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        asked = [ask.options(**self._on(node["NodeID"])).remote() for node in nodes]
        found = []
        for node, answer in zip(nodes, asked, strict=True):
            name = node["NodeManagerHostname"]
            try:
                said = ray.get(answer, timeout=_FACTS_SECONDS)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                found.append(Machine(node["NodeID"], name, {}, reason))
            else:
                found.append(Machine(node["NodeID"], name, said))
        return with_other_version(found, facts())

    def check_up(self, machines: Sequence[Machine]) -> dict[str, Checkup | str]:
        """Returns by id what machines measure of themselves, all at once, or why one did not."""
        ray = self._ray
        check = ray.remote(num_cpus=0, max_retries=0)(check_up)
        alive = {machine.id: machine for machine in machines}
        asked = {
            check.options(resources=self._whole(name), **self._on(name)).remote(): name
            for name in alive
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_CHECKUP_SECONDS)
        found: dict[str, Checkup | str] = {}
        for answer, name in asked.items():
            if answer not in done:
                ray.cancel(answer, force=True)
                found[name] = f"busy: not measured within {_CHECKUP_SECONDS} s"
                continue
            try:
                found[name] = ray.get(answer)
            except ray.exceptions.RayError as error:
                found[name] = str(error).strip().splitlines()[-1]
        return found

    def open(self, assignment: Assignment) -> None:
        """Says how is measured, before the first visit."""
        self._assignment = assignment

    def start(self, machine: Machine, case: AnyCase, earlier: list[Record], visit: int) -> object:
        """Starts a visit on a node."""
        if machine.id not in self._hosts:
            self._hosts[machine.id] = self._new_host(machine)
        return self._hosts[machine.id].visit.remote(case, earlier, visit)

    def _new_host(self, machine: Machine) -> Any:
        """Returns an actor that has a node to itself, whatever CPUs Ray thinks that there are."""
        assert self._assignment is not None
        whole = self._whole(machine.id)
        actor = self._ray.remote(num_cpus=0, resources=whole, max_restarts=0)(self._host)
        given = self._assignment
        return actor.options(**self._on(machine.id)).remote(
            given.effort, given.allocator, given.with_roofs
        )

    def _whole(self, node: str) -> dict[str, float]:
        """Returns what a task takes to have a node to itself."""
        (found,) = (n for n in self._ray.nodes() if n["NodeID"] == node)
        own = next(n for n in found["Resources"] if n.startswith("node:") and "internal" not in n)
        return {own: 1.0}

    def _on(self, node: str) -> dict[str, Any]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}

    def first(self, under_way: Sequence[object]) -> tuple[object, Callable[[], Visit]]:
        """Waits until a visit is over."""
        (ready, *_), _ = self._ray.wait(list(under_way), num_returns=1)

        def outcome() -> Visit:
            try:
                made: Visit = self._ray.get(ready)
            except self._ray.exceptions.RayTaskError as error:
                raise VisitFailedError(str(error).strip().splitlines()[-1]) from None
            except self._ray.exceptions.RayError as error:
                self._forget()
                raise MachineLostError(str(error)) from None
            return made

        return ready, outcome

    def _forget(self) -> None:
        """Drops the actors on nodes that are not there, and those that have ended."""
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        for machine in list(self._hosts):
            if machine not in alive or not self._answers(machine):
                del self._hosts[machine]

    def _answers(self, machine: str) -> bool:
        try:
            self._ray.get(self._hosts[machine].__ray_ready__.remote(), timeout=0)
        except self._ray.exceptions.GetTimeoutError:
            return True  # it is busy
        except self._ray.exceptions.RayError:
            return False
        return True

    def is_there(self, machine: Machine) -> bool:
        """Returns whether a node is alive."""
        return any(n["NodeID"] == machine.id and n["Alive"] for n in self._ray.nodes())

    def close(self) -> None:
        """Ends the actors, with their workers, and leaves the cluster."""
        closing = [host.close.remote() for host in self._hosts.values()]
        with contextlib.suppress(Exception):
            self._ray.wait(closing, num_returns=len(closing), timeout=5)
        for host in self._hosts.values():
            with contextlib.suppress(Exception):
                self._ray.kill(host)
        self._hosts.clear()
        self._ray.shutdown()
