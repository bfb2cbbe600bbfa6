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
    hot = f"hot path: {reorders or 'no'} reorder{'s' if reorders != 1 else ''}"
    return Group(
        f"{found['problem']} on {found['backend']}{chosen}, {found['threads']} threads",
        f"{', '.join(found['versions']['onednn']) or 'no oneDNN'}; {found['versions']['reason']}",
        *(
            _plans(found["plans"])
            if found["plans"]
            else (table, f"stages: {' -> '.join(found['stages'])}", hot)
        ),
        f"checked: {verdict}, {found['check']}",
    )


def _plans(plans: list[dict[str, Any]]) -> tuple[Table, str]:
    """How the fused kernel is cut up; the plan taken comes first."""
    table = Table(header_style="bold")
    for heading in ("plan", "piece in registers", "pieces a tile", "threads", "stores", "prefetch"):
        table.add_column(heading)
    costs = ("depthwise", "pointwise", "weights", "tile")
    for heading in (*costs, "cycles"):
        table.add_column(heading, justify="right")
    for index, plan in enumerate(plans):
        cycles = plan["cycles"]
        taken = "model's, taken" if plan["by_model"] else "tuned, taken"
        table.add_row(
            taken if index == 0 else "model's" if plan["by_model"] else "close",
            f"{plan['pixels']} px x {plan['channels']} ch",
            f"{plan['tile']} ({plan['tile_bytes'] / 1024:.1f} KiB)",
            f"{plan['pixel_parts']} px x {plan['channel_parts']} ch",
            "streaming" if plan["streaming"] else "cached",
            "next tile" if plan["prefetch"] else "no",
            *(f"{cycles[name]:,}" for name in costs),
            f"{sum(cycles.values()):,}",
        )
    return (
        table,
        "cycles: the model's, of the busiest thread; weights, tile: what fetching them adds",
    )
