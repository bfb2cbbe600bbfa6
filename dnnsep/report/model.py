"""Shows the layers of a model: as a table, and as a plain dict for JSON."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from dnnsep.graph.report import Report
from dnnsep.models.layers import LayerCost


def as_dict(
    name: str, input_shape: tuple[int, ...], layers: list[LayerCost], report: Report
) -> dict[str, Any]:
    """Returns the model's layers, their totals, and what ``optimize`` made of each layer."""
    return {
        "model": name,
        "input": list(input_shape),
        "parameters": sum(layer.parameters for layer in layers),
        "macs": sum(layer.macs for layer in layers),
        "flops": sum(layer.flops for layer in layers),
        "separable_share": report.separable_share,
        "layers": [{**vars(layer), "flops": layer.flops} for layer in layers],
        "optimize": [
            {**vars(e), "problem": str(e.problem) if e.problem else None} for e in report.entries
        ],
        "notes": report.notes,
        "error": report.error,
    }


def as_table(name: str, input_shape: tuple[int, ...], layers: list[LayerCost]) -> Table:
    """Returns a row for each layer, with the totals at the foot."""
    table = Table(
        title=f"{name}, input {list(input_shape)} (1 MAC = 1 multiply-add = 2 FLOPs)",
        title_justify="left",
        show_footer=True,
    )
    totals = [sum(getattr(layer, field) for layer in layers) for field in ("parameters", "macs")]
    table.add_column("layer", "total")
    table.add_column("kind")
    table.add_column("output")
    for heading, total in zip(
        ("parameters", "MACs", "FLOPs"), [*totals, 2 * totals[1]], strict=True
    ):
        table.add_column(heading, f"{total:,}", justify="right")
    for layer in layers:
        figures = (layer.parameters, layer.macs, layer.flops)
        shape = str(list(layer.output))
        table.add_row(layer.name, layer.kind, shape, *(f"{figure:,}" for figure in figures))
    return table
