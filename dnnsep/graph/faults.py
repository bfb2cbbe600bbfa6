"""Finds which kernels of a network differ from torch's operators on an example.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dnnsep.graph.build import Settings
from dnnsep.graph.difference import difference
from dnnsep.graph.groups import LayerGroup
from dnnsep.graph.lower import Group, lower
from dnnsep.graph.prepare import Prepared, layer_of_node


def faulty_layers(
    prepared: Prepared, inputs: Sequence[Tensor], bound: float, part: str = ""
) -> dict[str, str]:
    """Returns the layers whose kernels, each run alone on what it gets in the model, differ by more
    than a bound or fail: their names, and how they do."""
    traced = fx.GraphModule(prepared.captured.graph_module, prepared.graph)
    values = _Recorder(traced).values_on(inputs)
    found: dict[str, str] = {}
    for group in prepared.lowered.groups:
        try:
            actual = _alone(group, values)
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            right = values[group.result]
            if isinstance(group, LayerGroup) and group.scales is not None:  # bytes, in steps
                actual, right = actual.float(), right.float()
            apart = difference(actual, right, bound)
            if apart <= bound:
                continue
            text = f"differs by {apart:.1e}"
        found[layer_of_node(_first(group), part)] = text
    return found


def _first(group: Group) -> fx.Node:
    """Returns the node whose layer has to be left to torch to leave a group to it."""
    return group.anchors[0] if isinstance(group, LayerGroup) else group.nodes[0]


class _Recorder(fx.Interpreter):
    """Runs a graph by torch's operators and keeps the value of each node."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self._values: dict[fx.Node, Any] = {}

    def values_on(self, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
        with torch.no_grad():
            self.run(*inputs)
        return self._values

    def run_node(self, n: fx.Node) -> Any:
        self._values[n] = super().run_node(n)
        return self._values[n]


def _alone(group: Group, values: Mapping[fx.Node, Any]) -> Any:
    """Returns the result of a group's kernels on recorded inputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs: list[Tensor] = []
    constants: dict[fx.Node, Tensor] = {}

    def enter(node: fx.Node) -> None:
        if node in copies or node in group.nodes:
            return
        if node in group.inputs:
            copies[node] = graph.placeholder(node.name)
            inputs.append(values[node])
        else:
            copies[node] = graph.create_node("get_attr", node.name)
            constants[copies[node]] = values[node]
        copies[node].meta = dict(node.meta)

    for node in group.nodes:
        for source in node.all_input_nodes:
            enter(source)
    for node in group.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output((copies[group.result],))
    network = lower(graph, inputs, constants, Settings(torch.get_num_threads(), tune=False)).network
    (result,) = network.run(inputs)
    return result
