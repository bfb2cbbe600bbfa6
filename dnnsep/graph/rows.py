"""Which nodes of a graph become one row-wise kernel, and what it computes.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx

from dnnsep.codegen.rowwise.expression import (
    MOST_INPUTS,
    Expression,
    apply,
    layer_norm,
    number,
    operand,
    softmax,
)
from dnnsep.graph import layout, ops
from dnnsep.graph.groups import dtype_of, shape_of
from dnnsep.graph.predict import predicted
from dnnsep.graph.quantized import BYTES, dequantized, quantized
from dnnsep.graph.rewrite import arguments
from dnnsep.nn.layer import DTYPES

aten = torch.ops.aten

# What a tensor that such a kernel reads or writes holds.
TENSORS = {**DTYPES, **BYTES}

Term = Callable[[Any], Expression]


@dataclass(eq=False)
class RowGroup:
    """Nodes that one row-wise kernel computes, in order; the last one's value is its result.

    ``whole`` is the shape of what it works on: rows of the channels of ``channel_dim``, counted
    from the last dimension, -1. ``inputs`` are the nodes outside that it reads, and ``kinds`` how
    each enters.
    """

    nodes: list[fx.Node]
    inputs: list[fx.Node]
    whole: tuple[int, ...]
    channel_dim: int
    kinds: dict[fx.Node, Kind]

    @property
    def result(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def images(self) -> int:
        """How many images an operand with a row for each tells apart; 1 where there is none."""
        return next((images for kind, images in self.kinds.values() if kind == "image"), 1)


# How an operand enters, as the generator's expressions name it, and the images that it tells apart.
Kind = tuple[str, int]


def row_groups(
    nodes: Collection[fx.Node], constants: Collection[fx.Node], taken: Collection[fx.Node]
) -> list[RowGroup]:
    """Returns the groups of nodes that row-wise kernels can compute, as large as they can be.

    ``nodes`` are those of the graph in order, ``taken`` those that others compute.
    """
    groups: dict[fx.Node, RowGroup] = {}  # by their results
    for node in nodes:
        if node in constants or node in taken or not _fits(node):
            continue
        group = _alone(node, groups, constants)
        if group is None:
            continue
        for source in list(group.inputs):
            before = groups.get(source)
            if before is not None and (joined := _joined(before, group)) is not None:
                group = joined
                del groups[source]
        groups[node] = group
    return [group for group in groups.values() if shape_of(group.result) == group.whole]


def _alone(
    node: fx.Node, groups: Mapping[fx.Node, RowGroup], constants: Collection[fx.Node]
) -> RowGroup | None:
    """Returns a node as a group of its own."""
    whole = shape_of(node)
    before = [groups[source] for source in node.all_input_nodes if source in groups]
    longer = [group for group in before if (*group.whole[:-1], 1) == whole != group.whole]
    like = predicted(node)
    if node.target in _REDUCTIONS:
        source = node.all_input_nodes[0]
        whole, like = shape_of(source), predicted(source)
    elif longer:
        whole, like = longer[0].whole, predicted(longer[0].nodes[0].all_input_nodes[0])
    if not isinstance(like, Tensor) or like.dim() == 0 or like.numel() == 0:
        return None
    rowwise = node.target in _OF_ROWS or bool(longer)
    channel_dim = -1 if rowwise else layout.minor_dim(like) - like.dim()
    inputs = list(dict.fromkeys(node.all_input_nodes))
    if len(inputs) > MOST_INPUTS or layout.rows_of(like, channel_dim) is None:
        return None
    kinds: dict[fx.Node, Kind] = {}
    for source in inputs:
        kind = kind_of(shape_of(source), whole, channel_dim)
        if kind is None:
            if source not in constants:
                return None
            # Spread over all channels, or all of the pixels.
            kind = ("channels" if prod(shape_of(source)) == 1 else "pixels", 0)
        kinds[source] = kind
    group = RowGroup([node], inputs, whole, channel_dim, kinds)
    return group if _of_one_batch(group) else None


def _of_one_batch(group: RowGroup) -> bool:
    return len({images for kind, images in group.kinds.values() if kind == "image"}) <= 1


def _joined(before: RowGroup, after: RowGroup) -> RowGroup | None:
    """Returns two groups as one, if nothing else reads the first one's result and they are rows of
    the same channels."""
    source = before.result
    if dtype_of(source) in BYTES:  # what is rounded in memory only
        return None
    if (before.whole, before.channel_dim) != (after.whole, after.channel_dim):
        return None
    if any(user not in after.nodes for user in source.users):
        return None
    inputs = list(dict.fromkeys([*before.inputs, *(n for n in after.inputs if n is not source)]))
    if len(inputs) > MOST_INPUTS:
        return None
    kinds = {node: before.kinds.get(node) or after.kinds[node] for node in inputs}
    nodes = [*before.nodes, *after.nodes]
    group = RowGroup(nodes, inputs, after.whole, after.channel_dim, kinds)
    return group if _of_one_batch(group) else None


def _fits(node: fx.Node) -> bool:
    """Returns whether a row-wise kernel knows the operator of a node, with these arguments."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return False
    if dequantized(node) is not None:
        return dtype_of(node) in DTYPES and dtype_of(node.args[0]) in BYTES
    if dtype_of(node) not in DTYPES and quantized(node) is None:
        return False
    if any(not _is_float(source) for source in node.all_input_nodes):
        return False
    known = _operator_of(node)
    return known is not None and known(node, _placeholder) is not None


def _operator_of(node: fx.Node) -> Callable[[fx.Node, Term], Expression | None] | None:
    """Returns what makes a node an expression, if there is something."""
    if dequantized(node) is not None:
        return _dequantize
    return _quantize if quantized(node) is not None else _OPERATORS.get(node.target)


def _is_float(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor) and dtype_of(node) in DTYPES


def _placeholder(value: Any) -> Expression:
    return operand(0, "pixels") if isinstance(value, fx.Node) else number(float(value))


def kind_of(shape: tuple[int, ...], whole: tuple[int, ...], channel_dim: int) -> Kind | None:
    """Returns how an operand of a shape enters rows of channels.

    One with a row for each image tells apart the images of the dimensions that it has before the
    channels, which must be the first ones. None where it enters in no way.
    """
    shape = (1,) * (len(whole) - len(shape)) + shape
    channel_dim += len(whole)
    full = {d for d, size in enumerate(shape) if size == whole[d] > 1}
    others = [d for d in range(len(whole)) if whole[d] > 1 and d != channel_dim]
    has_channels = channel_dim in full or whole[channel_dim] == 1
    there = [d for d in others if d in full]
    if has_channels and there == others:
        return "pixels", 0
    if has_channels and not there:
        return "channels", 0
    if has_channels and there == others[: len(there)]:
        return "image", prod(whole[d] for d in there)
    return ("pixel", 0) if there == others else None


def expression_of(group: RowGroup) -> Expression:
    """Returns what a group computes of its inputs."""
    numbers = {node: index for index, node in enumerate(group.inputs)}
    result = TENSORS[dtype_of(group.result)]
    made: dict[fx.Node, Expression] = {}

    def term(value: Any) -> Expression:
        if not isinstance(value, fx.Node):
            return number(float(value))
        if value in made:
            return made[value]
        dtype = TENSORS[dtype_of(value)]
        kind: Any = group.kinds[value][0]
        return operand(numbers[value], kind, None if dtype == result else dtype)

    for node in group.nodes:
        operator = _operator_of(node)
        found = None if operator is None else operator(node, term)
        assert found is not None
        made[node] = found
    return made[group.result]


# What each operator computes of its arguments; None where its arguments make it something else.


def _binary(name: str) -> Callable[[fx.Node, Term], Expression | None]:
    def of(node: fx.Node, term: Term) -> Expression | None:
        if node.kwargs or len(node.args) != 2:
            return None
        return apply(name, *map(term, node.args))

    return of


def _unary(name: str) -> Callable[[fx.Node, Term], Expression | None]:
    return lambda node, term: apply(name, term(node.args[0]))


def _activation(node: fx.Node, term: Term) -> Expression | None:
    return apply(str(node.args[1]), term(node.args[0]))


def _quantize(node: fx.Node, term: Term) -> Expression | None:
    """Steps within a byte, which are rounded when they are written."""
    found = quantized(node)
    assert found is not None
    to = found.unsigned
    steps = term(node.args[0]) * (1.0 / to.scale) + float(to.zero_point)
    return apply("minimum", apply("maximum", steps, 0.0), 255.0)


def _dequantize(node: fx.Node, term: Term) -> Expression | None:
    found = dequantized(node)
    assert found is not None
    of = found.unsigned
    return (term(node.args[0]) - float(of.zero_point)) * of.scale


def _power(node: fx.Node, term: Term) -> Expression | None:
    x, exponent = term(node.args[0]), cast("float", node.args[1])
    if exponent == 2:
        return apply("square", x)
    return {0.5: apply("sqrt", x), -0.5: apply("rsqrt", x), 1: x}.get(exponent)


def _layer_norm(node: fx.Node, term: Term) -> Expression | None:
    given = arguments(node)
    if len(given["normalized_shape"]) != 1:
        return None
    y = layer_norm(term(given["input"]), float(given["eps"]))
    if given["weight"] is not None:
        y = y * term(given["weight"])
    return y if given["bias"] is None else y + term(given["bias"])


def _softmax(node: fx.Node, term: Term) -> Expression | None:
    dim, rank = node.args[1], len(shape_of(node))
    if node.kwargs or len(node.args) > 2 or dim not in (-1, rank - 1):
        return None
    return softmax(term(node.args[0]))


def _reduction(name: str) -> Callable[[fx.Node, Term], Expression | None]:
    def of(node: fx.Node, term: Term) -> Expression | None:
        if node.kwargs or len(node.args) != 3 or not node.args[2]:
            return None
        rank = len(shape_of(node))
        if [d % rank for d in cast("list[int]", node.args[1])] != [rank - 1]:
            return None
        return apply(name, term(node.args[0]))

    return of


def _clamp(node: fx.Node, term: Term) -> Expression | None:
    x, least, most = (*node.args, None, None)[:3]
    y = term(x)
    if isinstance(least, fx.Node) or isinstance(most, fx.Node) or node.kwargs:
        return None
    y = y if least is None else apply("maximum", y, float(least))  # type: ignore[arg-type]
    return y if most is None else apply("minimum", y, float(most))  # type: ignore[arg-type]


def _leaky(node: fx.Node, term: Term) -> Expression | None:
    slope = node.args[1] if len(node.args) > 1 else 0.01
    x = term(node.args[0])
    if not 0 <= slope <= 1:  # type: ignore[operator]
        return None
    return apply("maximum", x, x * float(slope))  # type: ignore[arg-type]


_REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList)
_OF_ROWS = (*_REDUCTIONS, aten.layer_norm.default, aten.softmax.int)

_OPERATORS: dict[Any, Callable[[fx.Node, Term], Expression | None]] = {
    ops.activation: _activation,
    ops.channel_mean: _unary("mean"),
    aten.add.Tensor: _binary("add"),
    aten.sub.Tensor: _binary("sub"),
    aten.mul.Tensor: _binary("mul"),
    aten.div.Tensor: _binary("div"),
    aten.maximum.default: _binary("maximum"),
    aten.minimum.default: _binary("minimum"),
    aten.neg.default: _unary("neg"),
    aten.exp.default: _unary("exp"),
    aten.sqrt.default: _unary("sqrt"),
    aten.rsqrt.default: _unary("rsqrt"),
    aten.tanh.default: _unary("tanh"),
    aten.square.default: _unary("square"),
    aten.pow.Tensor_Scalar: _power,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.leaky_relu.default: _leaky,
    aten.layer_norm.default: _layer_norm,
    aten.softmax.int: _softmax,
    aten.mean.dim: _reduction("mean"),
    aten.sum.dim_IntList: _reduction("sum"),
}
