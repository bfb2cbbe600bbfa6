"""Shows a machine and its roofs: the answer of ``dnnsep machine``, and the head of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from dnnsep.measure.roofs import Roofs

if TYPE_CHECKING:
    from dnnsep.codegen.rates import Rates


def head(roofs: Roofs) -> str:
    """Returns the roofs in a line.

    ``roofs, threads 2, 4.10 GHz: vector unit f32 520, … GFLOP/s (int8: GOP/s); L2 500, … GB/s``
    """
    units = ", ".join(f"{unit} {dtype} {rate:.0f}" for unit, dtype, rate, _ in roofs.units)
    memory = ", ".join(f"{level.name} {level.gbs:.0f}" for level in roofs.memory)
    return (
        f"roofs, threads {roofs.threads}, {roofs.clock_ghz:.2f} GHz: "
        f"{units} GFLOP/s (int8: GOP/s); {memory} GB/s"
    )


def as_text(fingerprint: dict[str, Any], measured: Sequence[Roofs], no_tiles: str) -> Group:
    """Returns the fingerprint in three lines, and two tables for each number of threads.

    ``no_tiles`` says why the CPU's tile unit may not be used; it is empty where it may be, and
    where there is none.
    """
    packages = ", ".join(f"{name} {v}" for name, v in fingerprint["packages"].items())
    lines: list[Any] = [
        f"{fingerprint['cpu']}, {fingerprint['cores']} cores, {fingerprint['logical_cpus']} CPUs",
        f"ISA: {', '.join(fingerprint['isa'])}",
        f"{fingerprint['os']}; Python {fingerprint['python']}; {packages}",
    ]
    if no_tiles:
        lines.append(f"tile unit not measured: {no_tiles}")
    for roofs in measured:
        lines += [_unit_table(roofs), _memory_table(roofs)]
    return Group(*lines)


def dot_table(rates: Rates) -> Table:
    """Returns the rates of the fused kernel's ways of multiplying, of one core."""
    from dnnsep.codegen.rates import FEW, MANY

    table = Table(
        title="ways of multiplying, one core, GFLOP/s", title_justify="left", header_style="bold"
    )
    table.add_column("dot")
    for depth in (FEW, MANY):
        table.add_column(f"{depth} channels", justify="right")
    for name, rate in rates.dots.items():
        table.add_row(name, *(f"{rate.gflops(depth):.1f}" for depth in (FEW, MANY)))
    return table


def _unit_table(roofs: Roofs) -> Table:
    title = f"multiply-adds, threads {roofs.threads}, clock {roofs.clock_ghz:.2f} GHz"
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("unit", "dtype", "GFLOP/s (int8: GOP/s)", "a cycle and core"):
        table.add_column(heading, justify="left" if heading in ("unit", "dtype") else "right")
    for unit, dtype, rate, a_cycle in roofs.units:
        table.add_row(unit, dtype, f"{rate:.1f}", f"{a_cycle:.1f}")
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
