"""Sweeps over several machines: which measure, what is done when one is lost, what is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dnnsep.measure.stats import Round, Stats
from dnnsep.problem import Problem
from dnnsep.sweep.case import AnyCase, Case
from dnnsep.sweep.fleet import (
    FleetSession,
    Machine,
    MachineLostError,
    VisitFailedError,
    chosen,
    with_other_version,
)
from dnnsep.sweep.fleetresults import FleetFile, FleetResults
from dnnsep.sweep.host import Visit, off
from dnnsep.sweep.node import Effort
from dnnsep.sweep.results import Record
from dnnsep.sweep.session import Assignment, SessionError
from tests.sweep.samples import QUIET

_FACTS: dict[str, Any] = {
    "cpu": "AMD EPYC 9R14",
    "vectors": "avx512_bf16",
    "cores": 2,
    "generator": "abc",
    "packages": {"dnnsep": "0.1.0"},
}


def _machine(number: int, **facts: Any) -> Machine:
    return Machine(str(number), f"host{number}", {**_FACTS, **facts})


def _record(case: AnyCase, backend: str, rounds: Sequence[Round]) -> Record:
    return Record(
        problem=str(case.problem),
        backend=backend,
        threads=case.threads,
        flops=1,
        status="ok",
        time=Stats.of(rounds),
        rounds=list(rounds),
    )


@dataclass
class _Pretended:
    """Machines that measure nothing: each visit takes 10 µs. ``dies`` names, by machine, the visit
    from 0 that it is lost in; it is there again where ``returns`` has it. Visits to the problems of
    ``fails`` end by an error."""

    there: list[Machine]
    dies: dict[str, int] = field(default_factory=dict)
    returns: set[str] = field(default_factory=set)
    made: list[tuple[str, str, int]] = field(default_factory=list)
    fails: set[str] = field(default_factory=set)
    outcomes: list[Visit | str | None] = field(default_factory=list)
    closed: int = 0
    interrupts: int | None = None

    def machines(self) -> list[Machine]:
        return self.there

    def open(self, assignment: Assignment) -> None:
        pass

    def start(self, machine: Machine, case: AnyCase, earlier: list[Record], visit: int) -> object:
        if self.interrupts is not None and len(self.made) >= self.interrupts:
            raise KeyboardInterrupt
        count = sum(name == machine.id for name, _, _ in self.made)
        if self.dies.get(machine.id) == count:
            del self.dies[machine.id]
            self.outcomes.append(None)
            return len(self.outcomes) - 1
        self.made.append((machine.id, str(case.problem), visit))
        if str(case.problem) in self.fails:
            self.outcomes.append("OSError: no room")
            return len(self.outcomes) - 1
        before = {record.backend: record.rounds for record in earlier}
        now = Round(visit=visit, before=QUIET, after=QUIET, calls_us=[10.0, 10.0])
        records = [_record(case, b, [*before.get(b, []), now]) for b in case.backends]
        self.outcomes.append(Visit(records, {"fused": {}}, {}))
        return len(self.outcomes) - 1

    def first(self, under_way: Sequence[Any]) -> tuple[object, Callable[[], Visit]]:
        ticket = under_way[0]

        def outcome() -> Visit:
            made: Visit | str | None = self.outcomes[ticket]
            if made is None:
                raise MachineLostError("it is gone")
            if isinstance(made, str):
                raise VisitFailedError(made)
            return made

        return ticket, outcome

    def is_there(self, machine: Machine) -> bool:
        return machine.id in self.returns

    def close(self) -> None:
        self.closed += 1


class _Watching:
    def __init__(self) -> None:
        self.advanced = 0

    def roofs(self, measured: Any) -> None:
        pass

    def no_roofs(self, reason: str) -> None:
        pass

    def step(self, text: str) -> None:
        pass

    def advance(self) -> None:
        self.advanced += 1


def _assignment(visits: int = 1, count: int = 3, seconds: float = 1.0) -> Assignment:
    problems = (Problem.parse(f"mb1ic{8 * n}oc8ih4kh1") for n in range(1, count + 1))
    cases = [Case(problem, None, 1, ("eager", "fused")) for problem in problems]
    return Assignment("Some", cases, {}, Effort(seconds, visits=visits), "keep", False)


def _run(
    fleet: _Pretended, path: Path, on: str = "each", resume: bool = False, **how: int
) -> tuple[FleetSession, bool, int]:
    session = FleetSession(_assignment(**how), fleet, on, path, resume)
    watching = _Watching()
    stopped = session.run(watching)
    return session, stopped, watching.advanced


@pytest.mark.parametrize(
    ("on", "names"),
    [
        ("each", ["amd-epyc-9r14-avx512_bf16-2c", "amd-epyc-9r14-avx512_bf16-4c", "xeon-avx2-2c"]),
        ("isa>=avx512", ["amd-epyc-9r14-avx512_bf16-2c", "amd-epyc-9r14-avx512_bf16-4c"]),
        ("isa>=avx512, cores<=2", ["amd-epyc-9r14-avx512_bf16-2c"]),
        ("cpu~xeon", ["xeon-avx2-2c"]),
        ("host=host1", ["amd-epyc-9r14-avx512_bf16-2c"]),
    ],
)
def test_which_measure(on: str, names: list[str]) -> None:
    machines = [
        _machine(0),
        _machine(1),
        _machine(2, cores=4),
        _machine(3, cpu="Xeon(R) CPU", vectors="avx2"),
    ]
    assert list(chosen(machines, on)) == names


def test_all_measure_by_themselves() -> None:
    found = chosen([_machine(0), _machine(1)], "all")
    label = "amd-epyc-9r14-avx512_bf16-2c"
    assert list(found) == [f"{label}@host0", f"{label}@host1"]


def test_kinds_that_are_called_alike() -> None:
    found = chosen([_machine(0), _machine(1, caches={"l2": 1})], "each")
    label = "amd-epyc-9r14-avx512_bf16-2c"
    assert list(found) == [label, f"{label}-2"]


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("fast", "'fast': must be each, all, or as isa>=avx512"),
        ("isa>=sse", "isa is one of avx2"),
        ("cores>=many", "cores are a whole number"),
        ("isa~avx", "cpu and host are compared by ~ and ="),
        ("cores>=64", "no machine is cores>=64"),
    ],
)
def test_what_cannot_be_chosen(on: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen([_machine(0)], on)


def test_another_dnnsep_is_refused() -> None:
    old, other = {"dnnsep": "0.0.9"}, "xyz"
    machines = [_machine(0), _machine(1, packages=old), _machine(2, generator=other)]
    judged = with_other_version(machines, _FACTS)
    reasons = [machine.reason for machine in judged]
    assert reasons == ["", "has dnnsep 0.0.9, not 0.1.0", "has another dnnsep"]
    with pytest.raises(ValueError, match=r"host1: has dnnsep 0\.0\.9"):
        chosen(judged[1:], "each")


def test_each_kind_measures_all(tmp_path: Path) -> None:
    fleet = _Pretended([_machine(0), _machine(1), _machine(2, cores=4)])
    session, stopped, advanced = _run(fleet, tmp_path / "r.json", visits=2)
    assert not stopped
    assert advanced == session.total == 12
    assert {name for name, _, _ in fleet.made} == {"0", "2"}
    saved = FleetResults.load(tmp_path / "r.json")
    assert saved == session.results
    assert [len(results.records) for results in saved.machines.values()] == [6, 6]
    assert all(record.visits == 2 for record in saved.records)
    assert [results.fingerprint["cores"] for results in saved.machines.values()] == [2, 4]
    assert fleet.closed == 1


def test_a_lost_machines_visit_goes_to_another_of_its_kind(tmp_path: Path) -> None:
    fleet = _Pretended([_machine(0), _machine(1)], dies={"0": 1})
    session, _, advanced = _run(fleet, tmp_path / "r.json")
    assert advanced == 3
    assert [name for name, _, _ in fleet.made] == ["0", "1", "1"]
    assert [record.status for record in session.results.records] == ["ok"] * 6


def test_a_machine_that_is_there_again_goes_on(tmp_path: Path) -> None:
    fleet = _Pretended([_machine(0)], dies={"0": 1}, returns={"0"})
    session, _, _ = _run(fleet, tmp_path / "r.json")
    assert [record.status for record in session.results.records] == ["ok"] * 6


def test_without_any_other_the_rest_is_killed_and_resumed(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    fleet = _Pretended([_machine(0)], dies={"0": 1})
    session, stopped, advanced = _run(fleet, path)
    assert not stopped
    assert advanced == 3
    statuses = [record.status for record in session.results.records]
    assert statuses == ["ok"] * 2 + ["killed"] * 4
    assert "every machine of this kind was lost" in str(session.results.records[-1].reason)
    again = _Pretended([_machine(7)])
    session, _, _ = _run(again, path, resume=True)
    assert [problem for _, problem, _ in again.made] == [
        str(case.problem) for case in _assignment().cases[1:]
    ]
    assert [record.status for record in session.results.records] == ["ok"] * 6


def test_an_error_of_a_visit_is_its_rows_alone(tmp_path: Path) -> None:
    first, *_ = (str(case.problem) for case in _assignment().cases)
    fleet = _Pretended([_machine(0), _machine(1)], fails={first})
    session, _, advanced = _run(fleet, tmp_path / "r.json")
    assert advanced == 3
    assert [name for name, _, _ in fleet.made] == ["0"] * 3
    found = [(record.status, record.reason) for record in session.results.records]
    assert found == [("failed", "OSError: no room")] * 2 + [("ok", None)] * 4


def test_ctrl_c_loses_nothing_that_was_made(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    fleet = _Pretended([_machine(0)], interrupts=2)
    _, stopped, _ = _run(fleet, path)
    assert stopped
    assert fleet.closed == 1
    assert len(FleetResults.load(path).records) == 4
    again = _Pretended([_machine(0)])
    _run(again, path, resume=True)
    assert len(again.made) == 1
    assert len(FleetResults.load(path).records) == 6


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    _run(_Pretended([_machine(0)]), path)
    with pytest.raises(SessionError, match="exists; add --resume"):
        _run(_Pretended([_machine(0)]), path)
    with pytest.raises(SessionError, match="its title or settings differ"):
        _run(_Pretended([_machine(0)]), path, resume=True, seconds=2)
    with pytest.raises(SessionError, match="avx512_bf16-2c is another machine now"):
        _run(_Pretended([_machine(0, caches={"l2": 1})]), path, resume=True)
    path.write_text("{}")
    with pytest.raises(SessionError, match=r"r\.json: title: Field required"):
        _run(_Pretended([_machine(0)]), path, resume=True)


def test_only_what_changed_is_made_into_text_again(tmp_path: Path) -> None:
    fleet = _Pretended([_machine(0), _machine(1, cores=4)])
    session, _, _ = _run(fleet, tmp_path / "r.json")
    first, second = session.results.machines.values()
    file = FleetFile(tmp_path / "s.json", session.results)
    file.save()
    first.title = second.title = "Other"
    file.changed(next(iter(session.results.machines)))
    file.save()
    titles = [r.title for r in FleetResults.load(tmp_path / "s.json").machines.values()]
    assert titles == ["Other", "Some"]


def test_a_canary_that_is_off() -> None:
    def stats(scale: float) -> Stats:
        calls = [scale * (10 + 0.01 * (n % 5)) for n in range(40)]
        rounds = [Round(visit=0, before=QUIET, after=QUIET, calls_us=calls) for _ in range(8)]
        return Stats.of(rounds)

    assert off(stats(1), stats(1.01)) is None
    assert "takes +20% of its first time" in str(off(stats(1), stats(1.2)))
    assert "takes -20% of its first time" in str(off(stats(1), stats(0.8)))
