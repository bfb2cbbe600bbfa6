"""Sweeps over a real Ray cluster: three kinds of nodes, of which one and the driver are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from dnnsep.problem import Problem
from dnnsep.sweep.case import Case
from dnnsep.sweep.fleet import FleetSession
from dnnsep.sweep.fleetresults import FleetResults
from dnnsep.sweep.node import Effort
from dnnsep.sweep.rayfleet import RayFleet
from dnnsep.sweep.session import Assignment
from tests.sweep.test_fleet import _Watching

pytestmark = pytest.mark.slow
_PROBLEMS = ("mb1ic8oc8ih4kh1", "mb1ic16oc8ih4kh1")
_LIMIT = 120


@dataclass
class _Cluster:
    """A cluster here: its address, and its nodes but for the head."""

    cluster: Any
    nodes: list[Any]

    @property
    def address(self) -> str:
        return str(self.cluster.address)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[_Cluster]:
    """Starts four nodes; two are alike, the others have more vectors to use."""
    from ray.cluster_utils import Cluster

    def node(cap: str) -> dict[str, Any]:
        return {"num_cpus": 1, "env_vars": {"DNNSEP_MAX_ISA": cap}}

    cluster: Any = Cluster(initialize_head=True, head_node_args=node("avx512"))
    try:
        nodes = [cluster.add_node(**node(cap)) for cap in ("avx2", "avx2", "avx512_bf16")]
        yield _Cluster(cluster, nodes)
    finally:
        cluster.shutdown()


def _dnnsep(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dnnsep.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _sweep(address: str, path: Path, *more: str, seconds: float = 0.02) -> subprocess.Popen[str]:
    asked = ("--backend", "fused", "--threads", "1")
    how = ("--seconds", str(seconds), "--ray", address, "-o", str(path))
    return _dnnsep("sweep", *_PROBLEMS, *asked, *how, *more)


def _until(path: Path, records: int) -> None:
    """Waits until so many records are saved."""
    end = time.monotonic() + _LIMIT
    while not path.exists() or len(FleetResults.load(path).records) < records:
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.02)


def test_nodes_are_listed(ray_cluster: _Cluster) -> None:
    """Each is measured; several at once on one computer are rightly in doubt, so either is fine."""
    done = _dnnsep("fleet", ray_cluster.address, "--json")
    told = json.loads(done.communicate(timeout=_LIMIT)[0])
    assert done.returncode == int(any(node["doubts"] for node in told))
    assert all(node["roofs"]["fma_gflops"]["f32"] > 0 for node in told)
    assert all(node["canary_us"] > 0 for node in told)
    assert sorted(node["facts"]["vectors"] for node in told)[:3] == ["avx2", "avx2", "avx512"]
    assert all(not node["reason"] for node in told)
    assert len({node["kind"] for node in told}) == 3


def test_one_of_each_kind_measures(ray_cluster: _Cluster, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    done = _sweep(ray_cluster.address, path)
    out, err = done.communicate(timeout=_LIMIT)
    assert done.returncode == 0, err
    results = FleetResults.load(path)
    assert len(results.machines) == 3
    for name, of_machine in results.machines.items():
        assert name in out
        assert of_machine.fingerprint["vectors"] in name
        assert of_machine.roofs
        assert [record.status for record in of_machine.records] == ["ok"] * 2
        ran = [record.impls for record in of_machine.records if record.backend == "fused"]
        assert all(of_machine.fingerprint["vectors"] in impl for impls in ran for impl in impls)


def test_a_node_killed_while_it_measures(ray_cluster: _Cluster, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    cases = [Case(Problem.parse(text), None, 1, ("fused",)) for text in _PROBLEMS]
    assignment = Assignment(
        "Killed", cases, {}, Effort(0.3, precision=0.0, visits=2), "keep", False
    )
    fleet = RayFleet(ray_cluster.address)
    starts: list[tuple[str, str, int]] = []
    start = fleet.start

    def started(machine: Any, case: Any, earlier: Any, visit: int) -> object:
        starts.append((machine.id, str(case.problem), visit))
        return start(machine, case, earlier, visit)

    fleet.start = started  # type: ignore[method-assign]
    session = FleetSession(assignment, fleet, "isa=avx2", path, resume=False)

    def kill() -> None:
        _until(path, 1)
        while len(starts) < 2:
            time.sleep(0.01)
        time.sleep(0.2)
        (node,) = (n for n in ray_cluster.nodes if n.node_id == starts[-1][0])
        ray_cluster.cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    assert not session.run(_Watching())
    killer.join()
    (results,) = FleetResults.load(path).machines.values()
    assert [record.status for record in results.records] == ["ok", "ok"]
    assert all(record.visits == 2 for record in results.records)
    assert len({machine for machine, _, _ in starts}) == 2
    assert len(starts) == 5  # four visits, of which one was made again
    visits = [(r.visit, len(r.calls_us)) for record in results.records for r in record.rounds]
    assert {visit for visit, _ in visits} == {0, 1}


def test_a_killed_driver_leaves_nothing_running(ray_cluster: _Cluster, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    asked = ("--visits", "2", "--on", "isa=avx512")
    driver = _sweep(ray_cluster.address, path, *asked, seconds=0.1)
    _until(path, 1)
    before = {record.key: record for record in FleetResults.load(path).records}
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    end = time.monotonic() + 10
    while _workers():
        assert time.monotonic() < end, _workers()
        time.sleep(0.1)
    again = _sweep(ray_cluster.address, path, *asked, "--resume", seconds=0.1)
    _, err = again.communicate(timeout=_LIMIT)
    assert again.returncode == 0, err
    (results,) = FleetResults.load(path).machines.values()
    assert [record.status for record in results.records] == ["ok"] * 2
    assert all(record.visits == 2 for record in results.records)
    for record in results.records:
        if record.key in before:
            known = before[record.key].rounds
            assert record.rounds[: len(known)] == known


def _workers() -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "dnnsep.sweep.worker" in line or "ray::Host" in line:
            found.append(line)
    return found


def test_which_machines_needs_a_cluster() -> None:
    done = _dnnsep("sweep", "quickstart", "--on", "all")
    _, err = done.communicate(timeout=_LIMIT)
    assert done.returncode == 2
    assert err.strip().endswith("so it needs --ray")


def test_an_address_without_a_cluster() -> None:
    done = _dnnsep("fleet", "127.0.0.1:1")
    _, err = done.communicate(timeout=_LIMIT)
    assert done.returncode == 2
    assert err.startswith("dnnsep: --ray 127.0.0.1:1: ")
    assert len(err.splitlines()) == 1
