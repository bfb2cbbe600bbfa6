"""Shows which backends a machine has: the answer of ``dnnsep backends`` as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table


def as_table(answers: dict[str, Any]) -> Group:
    """Returns a table with a row for each backend, and lines about the machine below it.

    ``answers`` has each backend's answer under ``backends``, whether it was run under ``ran``, the
    fingerprint under ``machine`` and the number of threads under ``default_threads``. Which oneDNN
    there is only shows where the backends were run.
    """
    ran = answers["ran"]
    table = Table(header_style="bold")
    table.add_column("backend", no_wrap=True)
    table.add_column("runs" if ran else "installed", no_wrap=True)
    table.add_column("what is there, or why not", overflow="fold")
    if ran:
        table.add_column("oneDNN", overflow="fold")
    for name, answer in answers["backends"].items():
        missing = answer.get("unavailable")
        cells = [name, "no" if missing else "yes", missing or answer["reason"]]
        onednn = ", ".join(_short_version(text) for text in answer.get("onednn", []))
        table.add_row(*cells, *([onednn] if ran else []))
    machine = answers["machine"]
    isa = next((a["isa"] for a in answers["backends"].values() if a.get("isa")), "")
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return Group(
        table,
        f"CPU: {machine['cpu']}, {machine['cores']} cores; threads: {answers['default_threads']}",
        f"ISA: {', '.join(machine['isa'])}" + (f"; oneDNN uses: {isa}" if isa else ""),
        f"Python {machine['python']}, {packages}",
        *([] if ran else ["Which oneDNN each one runs: dnnsep backends --run"]),
    )


def _short_version(text: str) -> str:
    """Returns oneDNN's version without its commit: ``v3.7.1``."""
    return text.removeprefix("oneDNN ").partition(" ")[0]
