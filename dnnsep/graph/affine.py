"""What multiplies and shifts each channel by constants: batch norms, layer scale, additions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dnnsep.graph.algebra import constant, filled, product, total, wide, with_shape
from dnnsep.graph.constants import is_constant
from dnnsep.graph.rewrite import (
    arguments,
    is_call,
    is_floating,
    same_geometry,
    shape_of,
    value_of,
)

_aten = torch.ops.aten
_ARITHMETIC = (_aten.mul.Tensor, _aten.div.Tensor, _aten.add.Tensor, _aten.sub.Tensor)


@dataclass(frozen=True)
class Affine:
    """A node that is x · scale + shift with constants for each channel.

    Channels are along dimension ``dim``; where that is None, one number holds for all.
    """

    node: fx.Node
    x: fx.Node
    dim: int | None

    @property
    def is_norm(self) -> bool:
        """Whether it is a batch norm."""
        return is_call(self.node, _aten.batch_norm.default)


def affine_of(node: fx.Node) -> Affine | None:
    """Returns what a node multiplies and shifts by constants; None if it does anything else."""
    if is_call(node, _aten.batch_norm.default):
        given = arguments(node)
        tensors = [given[name] for name in ("weight", "bias", "running_mean", "running_var")]
        fixed = not given["training"] and all(t is None or is_constant(t) for t in tensors)
        return Affine(node, given["input"], 1) if fixed and tensors[2] is not None else None
    if is_call(node, _aten.neg.default, _aten.rsub.Scalar) and is_floating(node):
        x: Any = node.args[0]
        return Affine(node, x, None) if same_geometry(x, node) and not is_constant(x) else None
    if not is_call(node, *_ARITHMETIC) or not is_floating(node):
        return None
    first, second = node.args[:2]
    for x, other in ((first, second), (second, first)):
        if not isinstance(x, fx.Node) or not same_geometry(x, node):
            continue
        if x is second and node.target is _aten.div.Tensor:
            continue
        if isinstance(other, fx.Node):
            dims = _wide_dims(other, node)
            if len(dims) > 1 or not is_constant(other) or is_constant(x):
                continue
            return Affine(node, x, dims[0] if dims else None)
        if isinstance(other, (int, float)) and not is_constant(x):
            return Affine(node, x, None)
    return None


def scale_and_shift(affine: Affine, channels: int) -> tuple[fx.Node | None, fx.Node | None]:
    """Returns the scale and the shift as new constants (channels,), None where there is none."""
    node = affine.node
    if affine.is_norm:
        return _of_norm(node)
    given = arguments(node)
    if is_call(node, _aten.neg.default):
        return filled(affine.x, -1, channels), None
    if is_call(node, _aten.rsub.Scalar):
        shift = filled(affine.x, given["other"], channels)
        return filled(affine.x, -given["alpha"], channels), shift
    reverse = given["other"] is affine.x
    value = _vector(affine, given["self"] if reverse else given["other"], channels)
    alpha = given.get("alpha", 1)
    if node.target is _aten.mul.Tensor:
        return value, None
    if node.target is _aten.div.Tensor:
        return constant(node.graph, _aten.reciprocal.default, value), None
    sign = -alpha if node.target is _aten.sub.Tensor else alpha
    if reverse:  # the constant, plus x times a number
        return (None if sign == 1 else filled(affine.x, sign, channels)), value
    return None, value if sign == 1 else constant(node.graph, _aten.mul.Tensor, value, sign)


def composed(
    first: tuple[fx.Node | None, fx.Node | None], then: tuple[fx.Node | None, fx.Node | None]
) -> tuple[fx.Node | None, fx.Node | None]:
    """Returns the scale and shift of one scale and shift after another."""
    scale, shift = first
    if shift is not None:
        shift = product(shift, then[0])
    return product(scale, then[0]), total(shift, then[1])


def _of_norm(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    given, graph = arguments(node), node.graph
    weight, bias = (
        None if given[name] is None else wide(given[name]) for name in ("weight", "bias")
    )
    mean, variance = wide(given["running_mean"]), wide(given["running_var"])
    variance = constant(graph, _aten.add.Tensor, variance, given["eps"])
    scale = constant(graph, _aten.rsqrt.default, variance)
    if weight is not None:
        scale = constant(graph, _aten.mul.Tensor, scale, weight)
    shift = constant(graph, _aten.neg.default, constant(graph, _aten.mul.Tensor, mean, scale))
    if bias is not None:
        shift = constant(graph, _aten.add.Tensor, shift, bias)
    return scale, shift


def _wide_dims(value: fx.Node, node: fx.Node) -> list[int]:
    """Returns the dimensions of a node along which a value that is broadcast to it varies."""
    offset = len(shape_of(node)) - len(shape_of(value))
    return [dim + offset for dim, size in enumerate(shape_of(value)) if size != 1]


def _vector(affine: Affine, value: Any, channels: int) -> fx.Node:
    """Returns a number, or a constant that varies along one dimension at most, as (channels,)."""
    if not isinstance(value, fx.Node):
        return filled(affine.x, value, channels)
    value = wide(value)
    if value_of(value).numel() == channels:
        return with_shape(value, channels)
    return constant(affine.node.graph, _aten.expand.default, with_shape(value, 1), [channels])
