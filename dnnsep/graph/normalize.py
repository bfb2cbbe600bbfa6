"""Brings a captured ATen graph into a small canonical form.

Operators have one spelling each, with their arguments written out; what changes nothing in eval
mode is gone. See the folder rules for what there is.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from dnnsep.graph.functional import drop_dropouts, rename_writes
from dnnsep.graph.rewrite import (
    CaptureError,
    Rules,
    is_random,
    joined,
    remove_dead,
    replace,
    rewrite,
)
from dnnsep.graph.rules import (
    activations,
    convolutions,
    identities,
    norms,
    pools,
    products,
    shapes,
)

_ITEMS: Rules = {operator.getitem: (*pools.RULES_OF_ITEMS, *products.RULES_OF_ITEMS)}
_aten = torch.ops.aten
_BY_MEMORY = (_aten.as_strided, _aten.as_strided_copy, _aten.as_strided_scatter)
_RULES = joined(
    identities.RULES,
    shapes.RULES,
    _ITEMS,
    convolutions.RULES,
    activations.RULES,
    pools.RULES,
    products.RULES,
    norms.RULES,
)


def normalize(graph_module: fx.GraphModule) -> None:
    """Brings the graph of a model in eval mode into the canonical form, in place.

    Raises CaptureError if an operator writes into a tensor that is then read through another name,
    or reads memory in the order in which it happens to be.
    """
    graph = graph_module.graph
    for node in graph.nodes:
        if getattr(node.target, "overloadpacket", None) in _BY_MEMORY:
            raise CaptureError(f"{node.target} depends on how its input lies in memory")
    drop_dropouts(graph)
    rename_writes(graph)
    _remove_checks(graph)
    remove_dead(graph)
    while True:
        shapes.take_lists_apart(graph)
        remove_dead(graph)
        merged = merge_equal(graph)
        if not rewrite(graph, _RULES) and not merged:
            break
    graph.lint()  # type: ignore[no-untyped-call]
    graph_module.recompile()


def merge_equal(graph: fx.Graph) -> bool:
    """Lets one node stand for all that call the same operator on the same arguments.

    Returns whether there were any.
    """
    first: dict[Any, fx.Node] = {}
    merged = False
    for node in graph.nodes:
        if node.op not in ("call_function", "get_attr") or is_random(node):
            continue
        key = (node.op, node.target, _key(node.args), _key(node.kwargs))
        if first.setdefault(key, node) is not node:
            replace(node, first[key])
            merged = True
    return merged


def _key(argument: Any) -> Any:
    """Returns something hashable that is equal for arguments of equal value and type only."""
    if isinstance(argument, (list, tuple)):
        return tuple(_key(item) for item in argument)
    if isinstance(argument, dict):
        return tuple((name, _key(item)) for name, item in argument.items())
    return type(argument), argument


def _remove_checks(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        name = node.target._schema.name if isinstance(node.target, OpOverload) else ""
        if name.removeprefix("aten::") in identities.CHECKS and not node.users:
            graph.erase_node(node)
