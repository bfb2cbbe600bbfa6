"""The constant part of a graph: what depends on the model's own tensors only."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dnnsep.graph.rewrite import is_random


def is_constant(node: Any) -> bool:
    """Returns whether a node's value depends on no input of the graph, nor on chance."""
    if not isinstance(node, fx.Node) or node.op in ("placeholder", "output"):
        return False
    seen, todo = {node}, [node]
    while todo:
        found = todo.pop()
        if found.op == "placeholder" or is_random(found):
            return False
        new = set(found.all_input_nodes) - seen
        seen |= new
        todo += new
    return True


def constants(graph: fx.Graph) -> set[fx.Node]:
    """Returns all constant nodes of a graph."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = all(before in found for before in node.all_input_nodes)
        if node.op in ("get_attr", "call_function") and inputs and not is_random(node):
            found.add(node)
    return found


def evaluate_constants(graph_module: fx.GraphModule) -> dict[fx.Node, Any]:
    """Returns the values of the constant nodes that others than constants use, the output among
    them. Nothing else is computed."""
    graph = graph_module.graph
    inner = constants(graph)
    # Values are dropped after the last constant that needs them, unless others need them too.
    last = {
        before: node for node in graph.nodes if node in inner for before in node.all_input_nodes
    }
    values: dict[fx.Node, Any] = {}
    interpreter = fx.Interpreter(graph_module, garbage_collect_values=False)
    interpreter.env = values
    with torch.no_grad():
        for node in graph.nodes:
            if node not in inner:
                continue
            values[node] = interpreter.run_node(node)
            for before in node.all_input_nodes:
                if last[before] is node and all(user in inner for user in before.users):
                    del values[before]
    return {
        node: value for node, value in values.items() if any(u not in inner for u in node.users)
    }
