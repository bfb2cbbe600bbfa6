"""What becomes of a worker that dies or hangs."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from dnnsep import Problem
from dnnsep.sweep.case import Case
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.client import Client, WorkerError
from dnnsep.sweep.node import MIN_ROUNDS, Effort, LocalNode
from tests.sweep.samples import small_roofs


def _case(size: int) -> Case:
    return Case(Problem.parse(f"ic16oc16ih{size}kh3ph1"), None, 1, ("eager", "onednn"))


def _node(**effort: Any) -> LocalNode:
    roofs = {1: small_roofs(1)}
    return LocalNode(Effort(seconds=0.05, **effort), "keep", roofs, probe_cache=True)


def test_a_killed_worker_is_a_row_and_is_started_again() -> None:
    with _node() as node:
        steps: list[str] = []

        def kill_when_measuring(step: str) -> None:
            steps.append(step)
            if step.endswith("measure"):
                os.kill(node._clients[Case.worker, "eager"].pid, signal.SIGKILL)

        eager, onednn = node.run(_case(12), on_step=kill_when_measuring)
        assert eager.status == "killed"
        assert "worker killed by SIGKILL" in (eager.reason or "")
        assert onednn.status == "ok"
        eager, onednn = node.run(_case(14))
        assert (eager.status, onednn.status) == ("ok", "ok")


def test_visits_add_up() -> None:
    case = _case(12)
    with _node() as node:
        first = {record.key: record for record in node.run(case)}
        assert not list(node.run(case, first, visit=0))
        second = list(node.run(case, first, visit=1))
    for record in second:
        before = first[record.key]
        assert before.visits == 1
        assert record.visits == 2
        assert record.rounds[: len(before.rounds)] == before.rounds
        assert record.time is not None
        assert record.time.rounds == len(record.rounds) >= 2 * MIN_ROUNDS
        assert record.time.low_us is not None
        assert record.roof is not None
        assert record.roof_share is not None
        assert record.peak_memory_bytes is None or record.peak_memory_bytes > 1 << 20
        assert record.cpus is None or len(record.cpus) == 1
        assert record.output == "allocated by each call"


def test_cold_caches_take_longer() -> None:
    problem = Problem.parse("ic1024oc1024ih1kh1")  # hardly more than reading 4 MB of weights
    hot, cold = Case(problem, None, 1, ("onednn",)), Case(problem, None, 1, ("onednn",), "cold")
    with _node() as node:
        (warm,), (record,) = node.run(hot), node.run(cold)
    assert (warm.cache, record.cache) == ("hot", "cold")
    assert warm.time is not None
    assert record.time is not None
    assert record.time.median_us > 1.2 * warm.time.median_us


def test_a_problem_too_large_for_the_reference_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(problem: Problem) -> CheckData:
        raise MemoryError("Unable to allocate 7 PiB")

    monkeypatch.setattr(CheckData, "exact", too_large)
    with _node() as node:
        records = list(node.run(_case(12)))
    assert [record.status for record in records] == ["failed", "failed"]
    assert records[0].reason == "no reference: MemoryError: Unable to allocate 7 PiB"


def test_a_hung_worker_is_killed() -> None:
    with Client("eager", timeout=0.05) as client:
        with pytest.raises(WorkerError, match=r"hung: no answer within 0\.05 s, killed"):
            client.ask("start")  # importing torch takes longer
        assert not client.alive


def test_what_a_worker_cannot_do_is_said() -> None:
    with Client("onednn") as client:
        client.ask("start")
        with pytest.raises(WorkerError, match="FileNotFoundError"):
            client.ask("prepare", problem="ic4oc4ih8kh3", cpus=[0], data="nowhere.npz")
        assert client.alive
