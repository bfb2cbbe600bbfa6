"""The sweep's loop without a terminal: what it tells, saves, resumes and refuses."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from dnnsep import Problem
from dnnsep.measure.roofs import Roofs
from dnnsep.sweep.case import Case
from dnnsep.sweep.node import Effort
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
