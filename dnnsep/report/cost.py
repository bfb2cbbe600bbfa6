"""Shows what a layer costs, for ``dnnsep cost``.

A separable or depthwise layer is shown beside the ordinary convolution that does the same work.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from dnnsep.cost import Cost, closed_form_ratio, cost
from dnnsep.problem import Problem

# The kinds whose work an ordinary convolution can do, so that they are shown beside one.
_COMPARED = ("separable", "depthwise")
# How the weights and the FLOPs of a kind with one stage are counted.
_FORMULAS = {
    "convolution": ("K·C·kh·kw", "2·bs·ic·oh·ow·kh·kw·oc"),
    "depthwise": ("K·C·kh·kw; C·m·kh·kw", "2·bs·ic·oh·ow·kh·kw·oc; 2·bs·ic·m·oh·ow·kh·kw"),
    "linear": ("K·C", "2·bs·ic·oc"),
    "mean": ("", "2·bs·ic·ih·iw"),
}


def as_dict(problem: Problem) -> dict[str, Any]:
    """Returns a problem's figures under its kind's name, with "ordinary" and the ratios to it where
    an ordinary convolution does the same work."""
    c = cost(problem)
    figures = {
        "problem": str(problem),
        "kind": problem.kind,
        "input_shape": problem.input_shape,
        "output_shape": problem.output_shape,
    }
    if problem.kind not in _COMPARED:
        return figures | {problem.kind: _figures(problem, c)}
    ratios = {"parameter_reduction": c.parameter_reduction, "cost_ratio": c.cost_ratio}
    if problem.kind == "separable":
        ratios["closed_form_ratio"] = closed_form_ratio(problem)
    ordinary = {
        "weights": c.ordinary_weights,
        "biases": c.ordinary_biases,
        "parameters": c.ordinary_parameters,
        "macs": c.ordinary_macs,
        "flops": c.ordinary_flops,
    }
    return figures | {"ordinary": ordinary, problem.kind: _figures(problem, c)} | ratios


def _figures(problem: Problem, c: Cost) -> dict[str, Any]:
    """Returns a layer's parameters, operations, bytes and FLOPs per byte.

    Only a separable layer has a tensor between two stages; its bytes are counted with it (staged)
    and without it (fused).
    """
    figures: dict[str, Any] = {"weights": c.weights, "biases": c.biases, "parameters": c.parameters}
    figures["macs"] = c.macs
    if problem.kind != "separable":
        return figures | {"flops": c.flops, "bytes": c.bytes_fused, "intensity": c.intensity_fused}
    return figures | {
        "depthwise_macs": c.depthwise_macs,
        "pointwise_macs": c.pointwise_macs,
        "flops": c.flops,
        "bytes_staged": c.bytes_staged,
        "bytes_fused": c.bytes_fused,
        "intensity_staged": c.intensity_staged,
        "intensity_fused": c.intensity_fused,
    }


def as_table(problem: Problem) -> Table:
    """Returns a problem's figures as a table, each with how it is counted."""
    return _separable_table(problem) if problem.kind == "separable" else _one_stage_table(problem)


def _one_stage_table(problem: Problem) -> Table:
    c, p = cost(problem), problem
    compared = p.kind in _COMPARED
    table = Table(title=str(p), title_justify="left", header_style="bold")
    for heading in ("", *(["ordinary"] if compared else []), p.kind, "how"):
        table.add_column(heading, justify="left" if heading in ("", "how") else "right")

    def row(name: str, ordinary: str, own: str, how: str = "") -> None:
        table.add_row(name, *([ordinary] if compared else []), own, how)

    weights, flops = _FORMULAS[p.kind]
    row("input", _shape(p.input_shape), _shape(p.input_shape), "N, C, H, W")
    row("output", _shape(p.output_shape), _shape(p.output_shape))
    table.add_section()
    row("weights", str(c.ordinary_weights), str(c.weights), weights)
    row("biases", str(c.ordinary_biases), str(c.biases))
    row("parameters", str(c.ordinary_parameters), str(c.parameters), "weights + biases")
    if compared:
        row("  saved", "", f"{100 * c.parameter_reduction:.2f} %")
    table.add_section()
    row("MACs", f"{c.ordinary_macs:,}", f"{c.macs:,}", "1 multiply-add = 1 MAC = 2 FLOPs")
    row("GMac", _giga(c.ordinary_macs), _giga(c.macs))
    row("FLOPs", f"{c.ordinary_flops:,}", f"{c.flops:,}", flops)
    if compared:
        row("  ratio", "", f"{c.cost_ratio:.4f}", f"{1 / c.cost_ratio:.2f} times fewer")
    table.add_section()
    row("bytes", "", f"{c.bytes_fused:,}", "each tensor once")
    row("FLOPs/byte", "", f"{c.intensity_fused:.1f}", "arithmetic intensity")
    return table


def _separable_table(problem: Problem) -> Table:
    c, p = cost(problem), problem
    kh, kw = p.kernel
    mid, out = p.mid_channels, p.out_channels
    depthwise = (mid * kh * kw, mid if p.bias else 0)
    table = Table(title=str(problem), title_justify="left", header_style="bold")
    for heading in ("", "ordinary", "separable", "how"):
        table.add_column(heading, justify="left" if heading in ("", "how") else "right")
    table.add_row("input", _shape(p.input_shape), _shape(p.input_shape), "N, C, H, W")
    table.add_row("output", _shape(p.output_shape), _shape(p.output_shape), "")
    table.add_section()
    table.add_row("depthwise.weight", "", str(depthwise[0]), "C·m·kh·kw")
    table.add_row("depthwise.bias", "", str(depthwise[1]), "C·m")
    table.add_row("pointwise.weight", "", str(mid * out), "C·m·K")
    table.add_row("pointwise.bias", "", str(out if p.bias else 0), "K")
    table.add_row("weights", str(c.ordinary_weights), str(c.weights), "K·C·kh·kw")
    table.add_row("parameters", str(c.ordinary_parameters), str(c.parameters), "weights + biases")
    table.add_row("  saved", "", f"{100 * c.parameter_reduction:.2f} %", "")
    table.add_section()
    table.add_row("MACs", f"{c.ordinary_macs:,}", f"{c.macs:,}", "1 multiply-add = 1 MAC = 2 FLOPs")
    table.add_row("GMac", _giga(c.ordinary_macs), _giga(c.macs), "")
    table.add_row(
        "FLOPs",
        f"{c.ordinary_flops:,}",
        f"{c.flops:,}",
        "2·bs·ic·oh·ow·kh·kw·oc; 2·bs·ic·m·oh·ow·(kh·kw+oc)",
    )
    table.add_row("  ratio", "", f"{c.cost_ratio:.4f}", f"{1 / c.cost_ratio:.2f} times fewer")
    closed = "1/N + 1/D_K²" if p.channel_multiplier == 1 else "m·(1/N + 1/D_K²)"
    table.add_row("  closed form", "", f"{closed_form_ratio(p):.4f}", closed)
    table.add_section()
    table.add_row("bytes, staged", "", f"{c.bytes_staged:,}", "each tensor once, in and out")
    table.add_row("bytes, fused", "", f"{c.bytes_fused:,}", "without the tensor in between")
    table.add_row("FLOPs/byte, staged", "", f"{c.intensity_staged:.1f}", "arithmetic intensity")
    table.add_row("FLOPs/byte, fused", "", f"{c.intensity_fused:.1f}", "")
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _giga(count: int) -> str:
    """Returns a count in billions, with two digits after the point or two that count."""
    return f"{count / 1e9:.2f}" if count >= 5e6 else f"{count / 1e9:.2g}"
