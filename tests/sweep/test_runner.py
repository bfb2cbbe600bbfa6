"""What becomes of a worker that dies or hangs."""

from __future__ import annotations

import os
import signal

import pytest

from dnnsep import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.client import Client, WorkerError
from dnnsep.sweep.config import Case
from dnnsep.sweep.runner import Runner


def _case(size: int) -> Case:
    return Case(Problem.parse(f"ic16oc16ih{size}kh3ph1"), None, 1, ("eager", "onednn"))


def test_a_killed_worker_is_a_row_and_is_started_again() -> None:
    with Runner(0.1, time_stages=False, allocator="keep") as runner:
        steps: list[str] = []

        def kill_when_measuring(step: str) -> None:
            steps.append(step)
            if step.endswith("measure"):
                os.kill(runner._clients["eager"].pid, signal.SIGKILL)

        eager, onednn = runner.run(_case(12), on_step=kill_when_measuring)
        assert eager.status == "failed"
        assert "worker killed by SIGKILL" in (eager.reason or "")
        assert onednn.status == "ok"
        eager, onednn = runner.run(_case(14))
        assert (eager.status, onednn.status) == ("ok", "ok")


def test_a_problem_too_large_for_the_reference_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(problem: Problem) -> CheckData:
        raise MemoryError("Unable to allocate 7 PiB")

    monkeypatch.setattr(CheckData, "exact", too_large)
    with Runner(0.1, time_stages=False, allocator="keep") as runner:
        records = list(runner.run(_case(12)))
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
            client.ask("prepare", problem="ic4oc4ih8kh3", threads=1, data="nowhere.npz")
        assert client.alive
