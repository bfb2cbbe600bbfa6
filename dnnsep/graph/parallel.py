"""Makes one layer of several that read the same value and do the same with other weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dnnsep.graph.algebra import constant, filled, total, weights_of, with_weights
from dnnsep.graph.constants import is_constant
from dnnsep.graph.ops import activation, convolution
from dnnsep.graph.rewrite import insert, is_call, layer_of, replace, same_geometry, shape_of

_aten = torch.ops.aten


def join_parallel(graph: fx.Graph) -> bool:
    """Makes one convolution of those of one image that are concatenated, one linear layer of two of
    one value that are added, and one of all others of one value. Returns whether there were any."""
    joined = False
    for node in list(graph.nodes):
        if is_call(node, _aten.cat.default) and node.args[1:] == (1,):
            joined |= _join_in_cat(node)
        elif is_call(node, _aten.add.Tensor):
            joined |= _join_in_sum(node)
    linear: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if is_call(node, _aten.linear.default) and _has_constants(node):
            linear.setdefault(node.args[0], []).append(node)
    for nodes in linear.values():
        if len(nodes) > 1:
            _join_linear(nodes)
            joined = True
    return joined


def _has_constants(node: fx.Node) -> bool:
    return all(is_constant(value) for value in node.args[1:3] if value is not None)


def _join_in_cat(cat: fx.Node) -> bool:
    """Joins neighbours in a concatenation. Returns whether there were any."""
    tensors: Any = cat.args[0]
    runs: list[tuple[Any, list[fx.Node]]] = []
    for tensor in tensors:
        kind = _kind(tensor)
        if kind is not None and runs and runs[-1][0] == kind:
            runs[-1][1].append(tensor)
        else:
            runs.append((kind, [tensor]))
    if len(runs) == len(tensors):
        return False
    pieces = [nodes[0] if len(nodes) == 1 else _joined(cat, nodes) for _, nodes in runs]
    replace(cat, pieces[0] if len(pieces) == 1 else insert(cat, _aten.cat.default, pieces, 1))
    return True


def _kind(node: fx.Node) -> Any:
    """Returns what convolutions, and their activations, must have in common to be joined; None if
    a node is none that can be."""
    name = None
    if is_call(node, activation) and len(node.users) == 1:
        node, name = node.args  # type: ignore[assignment]
    if not is_call(node, convolution) or len(node.users) > 1 or not _has_constants(node):
        return None
    x, weight, _, *geometry = node.args
    if geometry[-1] != 1:  # groups
        return None
    return x, shape_of(weight)[1:], geometry, name  # type: ignore[arg-type]


def _joined(cat: fx.Node, nodes: list[fx.Node]) -> fx.Node:
    """Returns the convolution, activated like them, that some are together."""
    convolutions: Any = [n.args[0] if is_call(n, activation) else n for n in nodes]
    new = _with_all_weights(cat, convolutions)
    return insert(cat, activation, new, nodes[0].args[1]) if nodes[0] not in convolutions else new


def _join_in_sum(node: fx.Node) -> bool:
    """Makes one linear layer of two of one value that are added. Returns whether it did."""
    both: Any = node.args[:2]
    first, second = both
    for linear in both:
        if not is_call(linear, _aten.linear.default) or not _has_constants(linear):
            return False
    alone = len(first.users) == len(second.users) == 1 and first is not second
    if not alone or node.kwargs or first.args[0] is not second.args[0]:
        return False
    if not same_geometry(first, second):
        return False
    (weight, bias), (more, more_bias) = weights_of(first), weights_of(second)
    weight = constant(node.graph, _aten.add.Tensor, weight, more)
    new = with_weights(first, weight, total(bias, more_bias), before=node)
    new.meta["layer"] = layer_of(first)
    replace(node, new)
    return True


def _join_linear(nodes: list[fx.Node]) -> None:
    """Replaces linear layers of one value by parts of one."""
    new = _with_all_weights(nodes[0], nodes)
    start, slices = 0, []
    for node in nodes:
        end = start + shape_of(node)[-1]
        dim = len(shape_of(node)) - 1
        slices.append(insert(nodes[0], _aten.slice.Tensor, new, dim, start, end, 1))
        start = end
    for node, part in zip(nodes, slices, strict=True):
        replace(node, part)


def _with_all_weights(before: fx.Node, nodes: list[fx.Node]) -> fx.Node:
    """Returns a new node that makes the output channels of several, one after the other."""
    pairs = [weights_of(node) for node in nodes]
    weight = constant(before.graph, _aten.cat.default, [weight for weight, _ in pairs], 0)
    bias = None
    if any(own is not None for _, own in pairs):
        biases = [
            filled(node, 0, shape_of(of)[0]) if own is None else own
            for node, (of, own) in zip(nodes, pairs, strict=True)
        ]
        bias = constant(before.graph, _aten.cat.default, biases, 0)
    new = with_weights(nodes[0], weight, bias, before=before)
    new.meta["layer"] = layer_of(nodes[0])
    return new
