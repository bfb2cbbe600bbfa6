"""Shows what ran for a problem: the answer of ``dnnsep explain`` for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table


def as_text(answer: dict[str, Any]) -> Group:
    """Returns a table of oneDNN's primitives, or of the fused kernel's plans, with the check.

    ``answer`` is what ``dnnsep.sweep.explain.explain`` returns.
    """
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
        for primitive in answer[when]:
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
    chosen = f" ({answer['why']})" if answer["why"] else ""
    reorders = answer["reorders"]
    verdict = "right" if answer["correct"] else "WRONG"
    hot = f"hot path: {reorders or 'no'} reorder{'s' if reorders != 1 else ''}"
    return Group(
        f"{answer['problem']} on {answer['backend']}{chosen}, {answer['threads']} threads",
        f"{', '.join(answer['versions']['onednn']) or 'no oneDNN'}; {answer['versions']['reason']}",
        *(
            (*_plans(answer["plans"]), _dots(answer["plans"][0]["dot"], answer["dots"]))
            if answer["plans"]
            else (table, f"stages: {' -> '.join(answer['stages'])}", hot)
        ),
        f"checked: {verdict}, {answer['check']}",
    )


def _dots(taken: str, rates: dict[str, dict[str, float]]) -> str:
    """Returns which way of multiplying was taken, and the rates of those there are."""
    found = [
        f"{name} {' to '.join(f'{rate:.0f}' for rate in of_dot.values())}"
        for name, of_dot in rates.items()
    ]
    return f"multiplied by {taken}; GFLOP/s of a core by few and by many channels: " + ", ".join(
        found
    )


def _plans(plans: list[dict[str, Any]]) -> tuple[Table, str]:
    """Returns a table of the ways to cut up the fused kernel, the plan taken first, and its key."""
    table = Table(header_style="bold")
    for heading in (
        "plan",
        "piece in registers",
        "pieces a tile",
        "threads",
        "stores",
        "next tile",
    ):
        table.add_column(heading)
    costs = ("depthwise", "pointwise", "weights", "tile")
    for heading in (*costs, "cycles"):
        table.add_column(heading, justify="right")
    for index, plan in enumerate(plans):
        cycles = plan["cycles"]
        name = "model's" if plan["by_model"] else "close"
        table.add_row(
            f"taken: {plan['chosen']}" if index == 0 else name,
            f"{plan['pixels']} px x {plan['channels']} ch",
            f"{plan['tile']} ({plan['tile_bytes'] / 1024:.1f} KiB)",
            f"{plan['pixel_parts']} px x {plan['channel_parts']} ch",
            "streaming" if plan["streaming"] else "cached",
            "computed" if plan["overlap"] else "fetched" if plan["prefetch"] else "",
            *(f"{cycles[name]:,}" for name in costs),
            f"{sum(cycles.values()):,}",
        )
    return (
        table,
        "cycles: the model's, of the busiest thread; weights, tile: what fetching them adds",
    )
