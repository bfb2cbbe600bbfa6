"""Puts what autocast and no_grad blocks compute, which torch.export keeps apart, in its place."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from dnnsep.graph.rewrite import CaptureError

_AUTOCAST = "wrap_with_autocast"
_GRADIENTS = "wrap_with_set_grad_enabled"


def inline_contexts(graph_module: fx.GraphModule) -> None:
    """Replaces each block by its nodes.

    Raises CaptureError if autocast is on in one for the CPU: its operators would convert.
    """
    for node in list(graph_module.graph.nodes):
        name = str(getattr(node.target, "__name__", ""))
        if name not in (_AUTOCAST, _GRADIENTS):
            continue
        if name == _AUTOCAST:
            device, _, enabled, _, block, *args = node.args
            if enabled and device == "cpu":
                raise CaptureError("autocast within the model")
        else:
            _, block, *args = node.args
        inner = getattr(graph_module, str(block.target))
        inline_contexts(inner)
        _inline(node, inner, args)
        node.graph.erase_node(node)
        if not block.users:
            node.graph.erase_node(block)


def _inline(node: fx.Node, inner: fx.GraphModule, args: list[Any]) -> None:
    """Puts a copy of a block's nodes before the node that calls it, and uses their results."""
    places = [inside for inside in inner.graph.nodes if inside.op == "placeholder"]
    nodes: dict[fx.Node, Any] = dict(zip(places, args, strict=True))
    with node.graph.inserting_before(node):
        results: Any = node.graph.graph_copy(inner.graph, nodes)
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        user.graph.erase_node(user)
