"""How many CPUs there are to use, by affinity and by control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dnnsep.host import cpus


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of control groups in place of the system's, with eight CPUs to run on."""
    monkeypatch.setattr(cpus, "_GROUPS", tmp_path)
    monkeypatch.setattr(cpus, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits_it_is_the_affinity(groups: Path) -> None:
    assert cpus.usable_cpus() == 8
    write(groups / "own", "0::/\n")
    write(groups / "cpu.max", "max 100000\n")
    assert cpus.usable_cpus() == 8


@pytest.mark.parametrize(("limit", "count"), [("50000", 1), ("150000", 2), ("1600000", 8)])
def test_version_2(groups: Path, limit: str, count: int) -> None:
    write(groups / "own", "0::/a/b\n")
    write(groups / "a" / "b" / "cpu.max", "max 100000\n")
    write(groups / "a" / "cpu.max", f"{limit} 100000\n")
    assert cpus.usable_cpus() == count


def test_version_2_in_a_container(groups: Path) -> None:
    write(groups / "own", "0::/system.slice/of/the/host\n")
    write(groups / "cpu.max", "300000 100000\n")
    assert cpus.usable_cpus() == 3


def test_version_1(groups: Path) -> None:
    write(groups / "own", "5:memory:/x\n4:cpu,cpuacct:/x\n")
    write(groups / "cpu" / "x" / "cpu.cfs_quota_us", "200000\n")
    write(groups / "cpu" / "x" / "cpu.cfs_period_us", "100000\n")
    assert cpus.usable_cpus() == 2
    write(groups / "cpu" / "x" / "cpu.cfs_quota_us", "-1\n")
    assert cpus.usable_cpus() == 8
