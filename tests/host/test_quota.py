"""How much CPU time control groups allow."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dnnsep.host import quota


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of control groups in place of the system's."""
    monkeypatch.setattr(quota, "_GROUPS", tmp_path)
    monkeypatch.setattr(quota, "_OWN", tmp_path / "own")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits(groups: Path) -> None:
    assert quota.quota() == math.inf
    write(groups / "own", "0::/\n")
    write(groups / "cpu.max", "max 100000\n")
    assert quota.quota() == math.inf


@pytest.mark.parametrize(("limit", "count"), [("50000", 0.5), ("150000", 1.5), ("1600000", 16)])
def test_version_2(groups: Path, limit: str, count: float) -> None:
    write(groups / "own", "0::/a/b\n")
    write(groups / "a" / "b" / "cpu.max", "max 100000\n")
    write(groups / "a" / "cpu.max", f"{limit} 100000\n")
    assert quota.quota() == count


def test_version_2_in_a_container(groups: Path) -> None:
    write(groups / "own", "0::/system.slice/of/the/host\n")
    write(groups / "cpu.max", "300000 100000\n")
    assert quota.quota() == 3


def test_version_1(groups: Path) -> None:
    write(groups / "own", "5:memory:/x\n4:cpu,cpuacct:/x\n")
    write(groups / "cpu" / "x" / "cpu.cfs_quota_us", "200000\n")
    write(groups / "cpu" / "x" / "cpu.cfs_period_us", "100000\n")
    assert quota.quota() == 2
    write(groups / "cpu" / "x" / "cpu.cfs_quota_us", "-1\n")
    assert quota.quota() == math.inf
