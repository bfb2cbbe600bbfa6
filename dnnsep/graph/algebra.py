"""Arithmetic on the constants of a graph: nodes that are evaluated once, before the first input.

Their arithmetic is in f32 where they are of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from dnnsep.graph.constants import constants
from dnnsep.graph.ops import convolution
from dnnsep.graph.rewrite import dtype_of, insert, is_call, shape_of

_aten = torch.ops.aten
_NARROW = (torch.bfloat16, torch.float16)


def first_input(graph: fx.Graph) -> fx.Node | None:
    """Returns the first input of a graph; None if it has none."""
    return next(iter(graph.find_nodes(op="placeholder")), None)


def hoist_constants(graph: fx.Graph) -> bool:
    """Moves all constants before the first input. Returns whether there is an input."""
    first = first_input(graph)
    if first is None:
        return False
    inner = constants(graph)
    for node in varying(graph):
        if node in inner:
            first.prepend(node)
    return True


def varying(graph: fx.Graph) -> list[fx.Node]:
    """Returns the nodes from the first input on: those that are not constant, once the constants
    have been hoisted."""
    nodes = list(graph.nodes)
    first = first_input(graph)
    return nodes if first is None else nodes[nodes.index(first) :]


def constant(graph: fx.Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Returns a new constant that calls an operator on constants."""
    first = first_input(graph)
    assert first is not None
    return insert(first, target, *args, **kwargs)


def wide(node: fx.Node) -> fx.Node:
    """Returns a constant in the type to compute with: f32 for one of 16 bits."""
    if dtype_of(node) not in _NARROW:
        return node
    if is_call(node, _aten._to_copy.default):
        before = node.args[0]
        assert isinstance(before, fx.Node)
        if dtype_of(before) is torch.float32:
            return before  # as it was before it was narrowed
    return converted(node, torch.float32)


def converted(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Returns a constant as another type."""
    if dtype_of(node) == dtype:
        return node
    return constant(node.graph, _aten._to_copy.default, node, dtype=dtype)


def product(a: fx.Node | None, b: fx.Node | None) -> fx.Node | None:
    """Returns the product of two constants, where None is 1."""
    if a is None or b is None:
        return a if b is None else b
    return constant(a.graph, _aten.mul.Tensor, a, b)


def total(a: fx.Node | None, b: fx.Node | None) -> fx.Node | None:
    """Returns the sum of two constants, where None is 0."""
    if a is None or b is None:
        return a if b is None else b
    return constant(a.graph, _aten.add.Tensor, a, b)


def filled(like: fx.Node, number: float, count: int) -> fx.Node:
    """Returns a constant (count,) of one number, of the type to compute a node's weights with."""
    dtype = torch.promote_types(dtype_of(like), torch.float32)
    return constant(like.graph, _aten.full.default, [count], number, dtype=dtype)


def with_shape(node: fx.Node, *shape: int) -> fx.Node:
    """Returns a constant in another shape."""
    if shape_of(node) == shape:
        return node
    return constant(node.graph, _aten.reshape.default, node, list(shape))


def part(node: fx.Node | None, start: int, end: int) -> fx.Node | None:
    """Returns a range of a constant vector; None of None."""
    if node is None or (start, end) == (0, shape_of(node)[0]):
        return node
    return constant(node.graph, _aten.slice.Tensor, node, 0, start, end, 1)


def weights_of(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Returns the weight and the bias of a convolution or a linear layer, to compute with."""
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    assert isinstance(weight, fx.Node)
    return wide(weight), wide(bias) if isinstance(bias, fx.Node) else None


def with_weights(
    node: fx.Node, weight: fx.Node, bias: fx.Node | None, before: fx.Node | None = None
) -> fx.Node:
    """Returns a new node that is a convolution or linear layer with other weights, placed before it
    or before another node."""
    dtype = dtype_of(node)
    bias = None if bias is None else converted(bias, dtype)
    args = (node.args[0], converted(weight, dtype), bias)
    if is_call(node, convolution):
        return insert(before or node, convolution, *args, *node.args[3:])
    return insert(before or node, _aten.linear.default, *args)


def scaled_outputs(node: fx.Node, scale: fx.Node | None, shift: fx.Node | None) -> fx.Node:
    """Returns a new node whose result is a convolution's or linear layer's, times a scale plus a
    shift for each output channel."""
    weight, bias = weights_of(node)
    if scale is not None:
        ones = [1] * (len(shape_of(weight)) - 1)
        weight = constant(
            node.graph, _aten.mul.Tensor, weight, with_shape(scale, shape_of(weight)[0], *ones)
        )
        bias = None if bias is None else product(bias, scale)
    return with_weights(node, weight, total(bias, shift))


def scaled_inputs(node: fx.Node, scale: fx.Node | None, shift: fx.Node | None) -> fx.Node:
    """Returns a new node that is a convolution or linear layer whose input x is first times a scale
    plus a shift for each channel.

    Where there is a shift, a convolution must have no padding.
    """
    graph = node.graph
    weight, bias = weights_of(node)
    out, depth, *kernel = shape_of(weight)
    groups: Any = node.args[6] if is_call(node, convolution) else 1
    ones = [1] * len(kernel)
    grouped = with_shape(weight, groups, out // groups, depth, *kernel)
    if shift is not None:
        summed = constant(
            graph, _aten.mul.Tensor, grouped, with_shape(shift, groups, 1, depth, *ones)
        )
        dims = list(range(2, 3 + len(kernel)))
        bias = total(bias, with_shape(constant(graph, _aten.sum.dim_IntList, summed, dims), out))
    if scale is not None:
        grouped = constant(
            graph, _aten.mul.Tensor, grouped, with_shape(scale, groups, 1, depth, *ones)
        )
    return with_weights(node, with_shape(grouped, out, depth, *kernel), bias)
