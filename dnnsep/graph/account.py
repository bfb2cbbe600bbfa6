"""What a prepared module is made of, for the report.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, fx

from dnnsep.backends.fused_executor import impl_name
from dnnsep.codegen import tuner
from dnnsep.codegen.cascade import choose
from dnnsep.codegen.cascade.step import CascadeStep
from dnnsep.codegen.generalstep import GeneralStep
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.program import Program
from dnnsep.codegen.step import Step
from dnnsep.graph.groups import is_layer, shape_of
from dnnsep.graph.network import Call, Native
from dnnsep.graph.opened import Sized
from dnnsep.graph.prepare import Prepared, layer_of_node
from dnnsep.graph.report import Entry, Report


def add_to_report(report: Report, prepared: Prepared, part: str, inputs: list[Tensor]) -> None:
    """Adds a prepared module to the report: its layers, kernels and calls, with the shares of the
    time that they take on inputs."""
    lowered, network = prepared.lowered, prepared.lowered.network
    entries: dict[fx.Node, Entry] = {}
    threads = torch.get_num_threads()
    for group, steps in lowered.layers:
        kind = group.problem.kind if group.problem.kind in ("separable", "linear") else ""
        names = tuple(layer_of_node(node, part) for node in group.anchors)
        flops = sum(_flops(node) for node in group.anchors)
        entries[group.anchors[0]] = Entry(
            names, kind or "convolution", flops, problem=group.problem
        )
        for step in steps[:1]:
            report.plans[tuner.step_chosen_by(step, threads)] += 1
    for node in prepared.graph.nodes:
        if is_layer(node) and node in lowered.left:
            names = (layer_of_node(node, part),)
            entries[node] = Entry(names, "left", _flops(node), lowered.left[node])
    report.entries += [entries[node] for node in prepared.graph.nodes if node in entries]
    of_layers = {step for _, steps in lowered.layers for step in steps}
    for action in network.actions:
        if isinstance(action, Call):
            report.calls[action.name] += 1
        elif isinstance(action.step, CascadeStep):
            verdict = choose.verdict_on(action.step.members, threads, tune=False)
            report.cascades[action.name] = verdict.ratio
        elif action.step not in of_layers:
            report.kernels[action.name] += 1
    report.pieces += sum(isinstance(part, Program) for part in network.parts)
    seconds, total = network.time_of_calls(inputs)
    for name, spent in seconds.items():
        report.shares[name] = report.shares.get(name, 0.0) + spent / total


def kernels_of(prepared: Prepared) -> str:
    """Returns what a prepared module runs on."""
    actions = prepared.lowered.network.actions
    calls = sum(isinstance(action, Call) for action in actions)
    text = _kernels([action.step for action in actions if isinstance(action, Native)])
    return ", ".join(filter(None, (text, f"{calls} calls of torch" if calls else "")))


def kernels_of_size(sized: Sized) -> str:
    """Returns what a module runs on for one size of its images."""
    of = sized.network.grids[0]
    size = f"{of.images} x {of.height} x {of.width}"
    return f"{_kernels(sized.network.steps)}, for {size} images"


def _kernels(steps: Sequence[Step]) -> str:
    cascades = [step for step in steps if isinstance(step, CascadeStep)]
    steps = [step for step in steps if not isinstance(step, CascadeStep)]
    steps += [member.step for step in cascades for member in step.members]
    layers = [step for step in steps if isinstance(step, (LayerStep, GeneralStep))]
    general = sum(isinstance(step, GeneralStep) for step in layers)
    texts = []
    if layers:
        how = f" ({general} by general kernels)" if general else ""
        how += f" ({len(cascades)} cascades)" if cascades else ""
        texts.append(f"{len(layers)} layers by {impl_name(layers)}{how}")
    others = len(steps) - len(layers)
    return ", ".join([*texts, *([f"{others} other kernels"] if others else [])])


def _flops(node: fx.Node) -> int:
    """Returns the FLOPs of a convolution or linear layer, two for each multiply-add."""
    weight = shape_of(node.args[1])
    return 2 * prod(shape_of(node)) * prod(weight[1:])
