"""Shows what runs a block: the answer of ``dnnsep explain`` for the terminal and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

if TYPE_CHECKING:
    from dnnsep.graph.considered import Looked
    from dnnsep.models.explain import Explained, Ran


def as_dict(explained: Explained) -> dict[str, Any]:
    """Returns all fields, with the block as its descriptor and times in microseconds."""
    return {**asdict(explained), "block": str(explained.block)}


def as_text(explained: Explained) -> Group:
    """Returns a table of the actions in order, and one of the cascades that were looked at."""
    ratio = explained.layer_by_layer_us / explained.us
    return Group(
        f"{explained.block}, {explained.threads} threads: {explained.us:.1f} us; layer by layer "
        f"{explained.layer_by_layer_us:.1f} us ({ratio:.2f} times)",
        _actions(explained.actions),
        "us: of each with all threads waiting for its end, one call after the other",
        *([_cascades(explained.cascades)] if explained.cascades else ["no two steps in a row"]),
    )


def _actions(actions: tuple[Ran, ...]) -> Table:
    table = Table(header_style="bold")
    for heading in ("what", "problem", "runs"):
        table.add_column(heading, overflow="fold")
    table.add_column("us", justify="right")
    for ran in actions:
        table.add_row(ran.name, "\n".join(ran.problems), ran.runs, f"{ran.us:.1f}")
    return table


def _cascades(cascades: tuple[Looked, ...]) -> Table:
    table = Table(header_style="bold")
    table.add_column("steps in a row", overflow="fold")
    for heading in ("between, a thread", "second cache", "times as fast"):
        table.add_column(heading, justify="right")
    table.add_column("cascade", overflow="fold")
    for looked in cascades:
        table.add_row(
            "\n".join(looked.problems),
            f"{looked.between_bytes / 1024:.1f} KiB",
            f"{looked.l2_bytes / 1024:.0f} KiB",
            f"{looked.ratio:.2f}" if looked.ratio is not None else "",
            "taken" if looked.taken else f"no: {looked.why_not}",
        )
    return table
