"""Finds the sizes of the CPU's caches."""

from __future__ import annotations

import os
from pathlib import Path


def caches_of(cpus: list[int]) -> dict[int, int]:
    """Returns how many bytes the caches of each level hold for these CPUs together.

    Levels are numbered from 1 and the innermost comes first. A cache that CPUs share counts once,
    one that holds instructions only does not count. The result is empty where the system is not
    Linux or does not describe its caches.
    """
    sizes: dict[int, dict[frozenset[int], int]] = {}
    for cpu in set(cpus):
        for index in Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
            kind, level, size, shared = (
                (index / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
            if kind != "Instruction":
                sharers = frozenset(cpu_list(shared))
                sizes.setdefault(int(level), {})[sharers] = int(size.removesuffix("K")) * 1024
    return {level: sum(sizes[level].values()) for level in sorted(sizes)}


def sizes_of_caches() -> tuple[int, int, int]:
    """Returns the bytes of the first, the second and the last cache that the first CPU which this
    process may run on has; small ones where the system does not say."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    sizes = caches_of(cpus[:1])
    return (
        sizes.get(1, 32 * 1024),
        sizes.get(2, 512 * 1024),
        max(sizes.values(), default=8 * 1024 * 1024),
    )


def cpu_list(text: str) -> set[int]:
    """Returns the CPUs of a list as Linux writes it: {0, 1, 4} for "0-1,4"."""
    spans = (span.partition("-") for span in text.strip().split(","))
    return {cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)}
