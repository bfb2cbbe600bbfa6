"""What ``dnnsep fleet`` makes of what machines say of themselves."""

from __future__ import annotations

from dnnsep.cli.fleet import _listed
from dnnsep.sweep.checkup import Checkup
from dnnsep.sweep.fleet import Machine


def _machine(name: str) -> Machine:
    return Machine(name, name, {"vectors": "avx2", "cores": 2, "cpu": "Some CPU"})


def test_a_machine_slower_than_its_like_is_in_doubt() -> None:
    kinds = {"a": "avx2-2c", "b": "avx2-2c", "c": "avx512-2c"}
    checkups = {name: Checkup(None, us, ()) for name, us in (("a", 10.0), ("b", 12.0), ("c", 5.0))}
    listed = [_listed(_machine(name), kinds, checkups) for name in kinds]
    assert [one.doubts for one in listed] == [
        (),
        ("canary: 1.20 times as slow as the fastest of its kind",),
        (),
    ]


def test_a_machine_that_does_not_answer_is_in_doubt() -> None:
    listed = _listed(_machine("a"), {"a": "avx2-2c"}, {"a": "busy: not measured within 60 s"})
    assert listed.doubts == ("busy: not measured within 60 s",)
    assert listed.as_dict()["roofs"] is None


def test_a_machine_that_cannot_measure_is_not_in_doubt() -> None:
    machine = Machine("a", "a", {}, reason="another dnnsep")
    listed = _listed(machine, {}, {})
    assert (listed.kind, listed.doubts, listed.as_dict()["reason"]) == (None, (), "another dnnsep")
