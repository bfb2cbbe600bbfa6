"""How much CPU time this process may use."""

from __future__ import annotations

import math
from pathlib import Path

# Where control groups are, and which of them are this process's.
_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def quota() -> float:
    """Returns the CPUs' worth of time that the control groups (version 2, or 1) of this process
    may take; infinity where none is limited."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _GROUPS / "cpu" if controllers else _GROUPS
        group = root / path.lstrip("/")
        # In a container the path may be that of the host, of which only the root is seen.
        for folder in (root, *(p for p in (group, *group.parents) if root in p.parents)):
            quotas.append(_of_v1(folder) if controllers else _of_v2(folder))
    return min(quotas)


def _of_v2(folder: Path) -> float:
    try:
        most, period = (folder / "cpu.max").read_text().split()
        return math.inf if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        return math.inf


def _of_v1(folder: Path) -> float:
    try:
        most, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        return most / period if most > 0 else math.inf
    except (OSError, ValueError):
        return math.inf
