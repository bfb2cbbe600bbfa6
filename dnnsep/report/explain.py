"""``dnnsep explain``'s answer as a table of primitives."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table


def as_text(found: dict[str, Any]) -> Group:
    table = Table(header_style="bold")
    for heading in (
        "when",
        "primitive",
        "impl",
        "weights",
        "src",
        "wei",
        "dst",
        "post-ops",
        "problem",
    ):
        table.add_column(heading, overflow="fold")
    for when in ("setup", "hot"):
        for primitive in found[when]:
            memory = primitive["memory"]
            table.add_row(
                when,
                primitive["kind"],
                primitive["impl"],
                "x".join(map(str, primitive["weights_dims"])),
                *(memory.get(k, "") for k in ("src", "wei", "dst")),
                primitive["post_ops"],
                primitive["problem"],
            )
    ran_on = found["ran_on"]
    chosen = f" (runs on {ran_on})" if ran_on != found["backend"] else ""
    reorders = found["reorders"]
    verdict = "right" if found["correct"] else "WRONG"
    return Group(
        f"{found['problem']} on {found['backend']}{chosen}, {found['threads']} threads",
        f"{', '.join(found['versions']['onednn']) or 'no oneDNN'}; {found['versions']['reason']}",
        table,
        f"stages: {' -> '.join(found['stages'])}",
        f"hot path: {reorders or 'no'} reorder{'s' if reorders != 1 else ''}",
        f"checked: {verdict}, {found['check']}",
    )
