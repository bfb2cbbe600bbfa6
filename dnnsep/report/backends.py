"""Shows which backends a machine has: the answer of ``dnnsep backends`` as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table


def as_table(answers: dict[str, Any]) -> Group:
    """Returns a table with a row for each backend, and lines about the machine below it.

    ``answers`` has each backend's answer under ``backends``, the fingerprint under ``machine`` and
    the number of threads under ``default_threads``.
    """
    table = Table(header_style="bold")
    for heading in ("backend", "available", "what is there, or why not", "oneDNN"):
        table.add_column(heading, overflow="fold")
    for name, answer in answers["backends"].items():
        missing = answer.get("unavailable")
        onednn = [text.removeprefix("oneDNN ") for text in answer.get("onednn", [])]
        table.add_row(
            name, "no" if missing else "yes", missing or answer["reason"], ", ".join(onednn)
        )
    machine = answers["machine"]
    isa = next((a["isa"] for a in answers["backends"].values() if a.get("isa")), "-")
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return Group(
        table,
        f"CPU: {machine['cpu']}, {machine['cores']} cores; threads: {answers['default_threads']}",
        f"ISA: {', '.join(machine['isa'])}; oneDNN uses: {isa}",
        f"Python {machine['python']}, {packages}",
    )
