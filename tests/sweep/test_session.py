"""The sweep's loop without a terminal: what it tells, saves, resumes and refuses."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dnnsep import Problem
from dnnsep.measure.roofs import Roofs
from dnnsep.sweep.case import AnyCase, Case
from dnnsep.sweep.node import Effort, LocalNode
from dnnsep.sweep.results import Results
from dnnsep.sweep.session import Assignment, Session, SessionError


class _Notes:
    """An observer that remembers, and can press Ctrl-C after so many visits to cases."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[str] = []
        self.visits = 0
        self._stop_after = stop_after

    def roofs(self, measured: Roofs) -> None:
        self.steps.append(f"roofs {measured.threads}")

    def no_roofs(self, reason: str) -> None:
        self.steps.append(reason)

    def step(self, text: str) -> None:
        self.steps.append(text)

    def advance(self) -> None:
        self.visits += 1
        if self.visits == self._stop_after:
            os.kill(os.getpid(), signal.SIGINT)


def _assignment(visits: int = 1) -> Assignment:
    cases = [Case(Problem.parse(f"ic16oc16ih{n}kh3ph1"), None, 1, ("eager",)) for n in (12, 14, 16)]
    effort = Effort(seconds=0.02, visits=visits)
    return Assignment("t", cases, {"config": ["x"]}, effort, "keep", with_roofs=False)


def test_a_session_saves_each_visit_and_tells_how_far_it_is(tmp_path: Path) -> None:
    path, notes = tmp_path / "r.json", _Notes()
    session = Session(_assignment(visits=2), path, resume=False)
    session.measure_roofs(notes)
    assert session.run(notes) is False
    assert notes.visits == 6
    assert any(step.endswith("prepare eager") for step in notes.steps)
    saved = Results.load(path)
    assert saved == session.results
    assert [record.visits for record in saved.records] == [2, 2, 2]
    assert saved.settings["visits"] == 2
    assert not saved.roofs


def test_ctrl_c_keeps_what_was_measured_and_resume_goes_on(tmp_path: Path) -> None:
    path, handler = tmp_path / "r.json", signal.getsignal(signal.SIGINT)
    assert Session(_assignment(), path, resume=False).run(_Notes(stop_after=2)) is True
    assert signal.getsignal(signal.SIGINT) is handler
    before = Results.load(path).records
    assert len(before) == 2
    notes = _Notes()
    assert Session(_assignment(), path, resume=True).run(notes) is False
    after = Results.load(path).records
    assert after[:2] == before
    assert len(after) == 3
    assert sum(step.endswith("measure") for step in notes.steps) == 1


def test_a_killed_worker_is_measured_again_and_a_crash_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an earlier visit has figures they stay."""
    path = tmp_path / "r.json"
    prepare = LocalNode._prepare

    def failing(sent: dict[str, signal.Signals]) -> Any:
        def prepared(self: LocalNode, case: AnyCase, backend: str, data: Path) -> Any:
            size = str(case.problem).partition("ih")[2][:2]
            if size in sent:
                client = self._client(backend, case.worker)
                assert client is not None
                os.kill(client.pid, sent.pop(size))
            return prepare(self, case, backend, data)

        return prepared

    monkeypatch.setattr(
        LocalNode, "_prepare", failing({"12": signal.SIGTERM, "14": signal.SIGSEGV})
    )
    assert Session(_assignment(), path, resume=False).run(_Notes()) is False
    killed, crashed, fine = Results.load(path).records
    assert [r.status for r in (killed, crashed, fine)] == ["killed", "failed", "ok"]
    assert "SIGTERM" in (killed.reason or "")
    assert "SIGSEGV" in (crashed.reason or "")
    Session(_assignment(), path, resume=True).run(_Notes())
    after = Results.load(path).records
    assert [record.status for record in after] == ["ok", "failed", "ok"]
    assert after[1:] == [crashed, fine]


def test_a_kill_on_a_later_visit_costs_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    burst = LocalNode._burst

    def killing(self: LocalNode, case: AnyCase, entry: Any) -> Any:
        if entry.rounds["all"] == [] and "ih12" in str(case.problem):
            seen.append(case)
            if len(seen) == 2:  # the second visit
                os.kill(entry.client.pid, signal.SIGKILL)
        return burst(self, case, entry)

    seen: list[AnyCase] = []
    monkeypatch.setattr(LocalNode, "_burst", killing)
    Session(_assignment(visits=2), path, resume=False).run(_Notes())
    first = Results.load(path).records[0]
    assert first.status == "ok"
    assert {r.visit for r in first.rounds} == {0}
    Session(_assignment(visits=2), path, resume=True).run(_Notes())
    after = Results.load(path).records[0]
    assert {r.visit for r in after.rounds} == {0, 1}
    assert after.rounds[: len(first.rounds)] == first.rounds


def test_what_cannot_be_gone_on_with_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    _assignment().fresh_results().save(path)
    with pytest.raises(SessionError, match="exists; add --resume"):
        Session(_assignment(), path, resume=False)
    other = dataclasses.replace(_assignment(), settings={"config": ["y"]})
    with pytest.raises(SessionError, match=r"its settings differs \(config\)"):
        Session(other, path, resume=True)
    with pytest.raises(SessionError, match="no such directory"):
        Session(_assignment(), tmp_path / "nowhere" / "r.json", resume=False)
    path.write_text("{")
    with pytest.raises(SessionError, match="Invalid JSON"):
        Session(_assignment(), path, resume=True)
