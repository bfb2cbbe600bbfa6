"""The sizes of the CPU's caches."""

from __future__ import annotations

from pathlib import Path


def caches_of(cpus: list[int]) -> dict[int, int]:
    """Bytes that the caches of each level hold for these CPUs together, innermost first.

    Linux says which CPUs share a cache; elsewhere, and where it does not say, there are none.
    Caches that hold instructions only do not count.
    """
    found: dict[int, dict[frozenset[int], int]] = {}
    for cpu in set(cpus):
        for index in Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
            kind, level, size, shared = (
                (index / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
            if kind != "Instruction":
                sharers = frozenset(cpu_list(shared))
                found.setdefault(int(level), {})[sharers] = int(size.removesuffix("K")) * 1024
    return {level: sum(found[level].values()) for level in sorted(found)}


def cpu_list(text: str) -> set[int]:
    """{0, 1, 4} of "0-1,4"."""
    spans = (part.partition("-") for part in text.strip().split(","))
    return {cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)}
