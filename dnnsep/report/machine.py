"""Shows a machine and its roofs: the answer of ``dnnsep machine``, and the head of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from dnnsep.measure.roofs import Roofs


def head(roofs: Roofs) -> str:
    """Returns ``roofs, threads 2, 4.10 GHz: f32 520, … GFLOP/s (int8: GOP/s); L2 500, … GB/s``."""
    fma = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in roofs.fma_gflops.items())
    memory = ", ".join(f"{level.name} {level.gbs:.0f}" for level in roofs.memory)
    return (
        f"roofs, threads {roofs.threads}, {roofs.clock_ghz:.2f} GHz: "
        f"{fma} GFLOP/s (int8: GOP/s); {memory} GB/s"
    )


def as_text(fingerprint: dict[str, Any], measured: Sequence[Roofs]) -> Group:
    """Returns the fingerprint in three lines, and two tables for each number of threads."""
    packages = ", ".join(f"{name} {v}" for name, v in fingerprint["packages"].items())
    lines: list[Any] = [
        f"{fingerprint['cpu']}, {fingerprint['cores']} cores, {fingerprint['logical_cpus']} CPUs",
        f"ISA: {', '.join(fingerprint['isa'])}",
        f"{fingerprint['os']}; Python {fingerprint['python']}; {packages}",
    ]
    for roofs in measured:
        lines += [_fma_table(roofs), _memory_table(roofs)]
    return Group(*lines)


def _fma_table(roofs: Roofs) -> Table:
    title = f"multiply-adds, threads {roofs.threads}, clock {roofs.clock_ghz:.2f} GHz"
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("dtype", "GFLOP/s (int8: GOP/s)", "a cycle and core"):
        table.add_column(heading, justify="left" if heading == "dtype" else "right")
    for dtype, rate in roofs.fma_gflops.items():
        table.add_row(dtype, f"{rate:.1f}", f"{roofs.fma_flops_per_cycle[dtype]:.1f}")
    return table


def _memory_table(roofs: Roofs) -> Table:
    title = f"memory, threads {roofs.threads}"
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("level", "size", "read GB/s", "copy GB/s (read + written)"):
        table.add_column(heading, justify="left" if heading == "level" else "right")
    for level in roofs.memory:
        size = "" if level.capacity_bytes is None else f"{level.capacity_bytes / 2**20:g} MiB"
        table.add_row(level.name, size, f"{level.read_gbs:.1f}", f"{level.copy_gbs:.1f}")
    return table
