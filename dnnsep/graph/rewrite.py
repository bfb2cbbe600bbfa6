"""What every rewriting of a captured graph needs: nodes with their values, arguments by name,
rules and the loop that applies them.

Each node keeps meta["val"], its value on the example (a FakeTensor, or a number), and
meta["layer"], the path of the module that it comes from.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

# Gives the node that is to take a node's place, or None where the rule does not apply.
Rule: TypeAlias = Callable[[fx.Node], fx.Node | None]

# By the operator: an overload, or all overloads of one name.
Rules: TypeAlias = Mapping[Any, tuple[Rule, ...]]


class CaptureError(ValueError):
    """Says in one line why a model has no graph that could be scheduled."""


def insert(before: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Returns a new node that calls an operator, placed before another and of its layer."""
    graph = before.graph
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs)
    with fake_mode(graph), torch.no_grad():
        node.meta["val"] = target(*_values(args), **_values(kwargs))
    node.meta["layer"] = before.meta.get("layer", "")
    return node


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """Returns the mode that the values of a graph's nodes belong to."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    raise CaptureError("the graph has no tensors")


def replace(node: fx.Node, by: fx.Node) -> None:
    """Lets a node's users use another, and removes the node and what only it has used."""
    node.replace_all_uses_with(by)
    erase(node)


def erase(node: fx.Node) -> None:
    """Removes a node without users, and then those before it that have no other users."""
    inputs = node.all_input_nodes
    node.graph.erase_node(node)
    for before in inputs:
        if not before.users and before.op in ("call_function", "get_attr"):
            erase(before)


def remove_dead(graph: fx.Graph) -> None:
    """Removes the nodes without users, random ones too."""
    for node in reversed(graph.nodes):
        if not node.users and node.op in ("call_function", "get_attr"):
            graph.erase_node(node)


def rewrite(graph: fx.Graph, rules: Rules) -> bool:
    """Applies rules to all nodes in order, again and again until none applies.

    Returns whether one did.
    """
    rewritten = False
    while _rewrite_once(graph, rules):
        rewritten = True
    return rewritten


def _rewrite_once(graph: fx.Graph, rules: Rules) -> bool:
    rewritten = False
    for node in graph.nodes:  # which tolerates that nodes are inserted and erased meanwhile
        for rule in rules_for(node, rules):
            by = rule(node)
            if by is not None:
                replace(node, by)
                rewritten = True
                break
    return rewritten


def rules_for(node: fx.Node, rules: Rules) -> tuple[Rule, ...]:
    """Returns the rules for a node's operator."""
    target = node.target
    found = rules.get(target, ()) if node.op == "call_function" else ()
    if isinstance(target, OpOverload):
        found = (*found, *rules.get(target.overloadpacket, ()))
    return found


def joined(*tables: Rules) -> Rules:
    """Returns one table of all rules of some, which apply in this order."""
    keys = {key: None for table in tables for key in table}
    return {key: tuple(r for table in tables for r in table.get(key, ())) for key in keys}


def arguments(node: fx.Node) -> dict[str, Any]:
    """Returns all arguments of a call of an ATen operator by their names, defaults among them."""
    assert isinstance(node.target, OpOverload)
    found = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        else:
            found[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return found


def is_call(node: Any, *targets: Any) -> bool:
    """Returns whether something is a node that calls one of some operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def only_user(node: fx.Node) -> fx.Node | None:
    """Returns the one node that uses a node; None if there is another number of them."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_tensor(node: Any) -> bool:
    """Returns whether something is a node whose value is one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def value_of(node: fx.Node) -> Tensor:
    """Returns the FakeTensor of a node whose value is a tensor."""
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Returns the shape of a node's value on the example."""
    return tuple(value_of(node).shape)


def dtype_of(node: fx.Node) -> torch.dtype:
    """Returns the dtype of a node's value."""
    return value_of(node).dtype


def layer_of(node: fx.Node) -> str:
    """Returns the path of the module that a node comes from, empty if none is known."""
    return str(node.meta.get("layer", ""))


def same_geometry(node: fx.Node, other: fx.Node) -> bool:
    """Returns whether the values of two nodes have one shape and one dtype."""
    return shape_of(node) == shape_of(other) and dtype_of(node) == dtype_of(other)


def is_floating(node: fx.Node) -> bool:
    """Returns whether a node's value is a tensor of real floating-point numbers."""
    return is_tensor(node) and dtype_of(node).is_floating_point


def is_random(node: fx.Node) -> bool:
    """Returns whether a node's value differs from call to call."""
    target = node.target
    return isinstance(target, OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def item_of(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Returns the list and the index that a node takes an item of; None if it takes none."""
    if not is_call(node, operator.getitem):
        return None
    source, index = node.args
    return (source, index) if isinstance(source, fx.Node) and isinstance(index, int) else None


def _values(argument: Any) -> Any:
    return fx.node.map_aggregate(argument, lambda a: a.meta["val"] if isinstance(a, fx.Node) else a)
