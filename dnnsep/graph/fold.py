"""Folds what multiplies and shifts channels by constants into the weights next to it.

A folded weight is a new constant of the graph, an operator on the model's own tensors. It is
evaluated when the graph is prepared, and again when they change.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from dnnsep.graph.affine import Affine, affine_of, composed, scale_and_shift
from dnnsep.graph.algebra import (
    converted,
    hoist_constants,
    part,
    scaled_inputs,
    scaled_outputs,
    varying,
    with_shape,
)
from dnnsep.graph.constants import is_constant
from dnnsep.graph.ops import convolution
from dnnsep.graph.rewrite import (
    dtype_of,
    insert,
    is_call,
    only_user,
    remove_dead,
    replace,
    shape_of,
)

_aten = torch.ops.aten


def fold(graph_module: fx.GraphModule) -> bool:
    """Folds batch norms, and products and sums with constants for each channel, into the weights
    of convolutions and linear layers before or after them, in place.

    The batch norms that are left become products and sums. Returns whether anything changed.
    """
    graph = graph_module.graph
    if not hoist_constants(graph):
        return False
    changed = False
    while any([_fold_back(graph), _fold_ahead(graph)]):
        changed = True
    changed |= _spell_out(graph)
    remove_dead(graph)
    if changed:
        graph.lint()  # type: ignore[no-untyped-call]
        graph_module.recompile()
    return changed


@dataclass(frozen=True)
class _Place:
    """A convolution or linear layer whose output channels are a range of some channels."""

    node: fx.Node
    start: int
    end: int


def _fold_back(graph: fx.Graph) -> bool:
    """Folds into the weights of what comes before. Returns whether there was anything."""
    folded = False
    for node in varying(graph):
        affine = affine_of(node)
        places = [] if affine is None else _places(affine.x, affine.dim)
        if affine is None or not places:
            continue
        scale, shift = scale_and_shift(affine, places[-1].end)
        position = node.args.index(affine.x)
        for place in places:
            own = (part(value, place.start, place.end) for value in (scale, shift))
            replace(place.node, scaled_outputs(place.node, *own))
        x = node.args[position]  # a new node, if a place was right before
        assert isinstance(x, fx.Node)
        replace(node, x)
        folded = True
    return folded


def _places(x: Any, dim: int | None) -> list[_Place]:
    """Returns whose output channels the channels of a value along a dimension are; nothing if they
    are not only those of convolutions and linear layers, or if others read them too.

    With None as the dimension it is about all values, and there is one such layer.
    """
    while isinstance(x, fx.Node) and len(x.users) == 1:
        channels = channel_dim(x)
        if channels is not None:
            fits = dim in (None, channels)
            return [_Place(x, 0, shape_of(x)[channels])] if fits and _has_constants(x) else []
        if is_call(x, _aten.cat.default):
            return _places_in_cat(x) if (dim,) == x.args[1:] else []
        if not is_call(x, _aten.permute.default, _aten.reshape.default):
            return []
        if dim is not None:
            dim = _dim_before(x, dim)
            if dim is None:
                return []
        x = x.args[0]
    return []


def _places_in_cat(node: fx.Node) -> list[_Place]:
    tensors: Any = node.args[0]
    places: list[_Place] = []
    start = 0
    for tensor in tensors:
        inner = _places(tensor, node.args[1])  # type: ignore[arg-type]
        known = {place.node for place in places}
        if not inner or any(place.node in known for place in inner):
            return []
        places += [_Place(p.node, start + p.start, start + p.end) for p in inner]
        start += inner[-1].end
    return places


def channel_dim(node: fx.Node) -> int | None:
    """Returns the dimension of the output channels of a convolution or a linear layer; None of
    anything else."""
    if is_call(node, convolution):
        return 1
    return len(shape_of(node)) - 1 if is_call(node, _aten.linear.default) else None


def _has_constants(node: fx.Node) -> bool:
    weights = [value for value in node.args[1:3] if value is not None]
    return all(is_constant(value) for value in weights)


def _dim_before(node: fx.Node, dim: int) -> int | None:
    """Returns which dimension of its input a dimension of a permute or reshape is; None if it is
    none alone."""
    x: Any = node.args[0]
    if is_call(node, _aten.permute.default):
        order: Any = node.args[1]
        return int(order[dim])
    return _same_dim(shape_of(node), dim, shape_of(x))


def _dim_after(node: fx.Node, dim: int) -> int | None:
    """Returns which dimension of a permute or reshape a dimension of its input becomes."""
    x: Any = node.args[0]
    if is_call(node, _aten.permute.default):
        order: Any = node.args[1]
        return list(order).index(dim)
    return _same_dim(shape_of(x), dim, shape_of(node))


def _same_dim(shape: tuple[int, ...], dim: int, other: tuple[int, ...]) -> int | None:
    """Returns the dimension of another shape of the same values along which they lie as along a
    dimension of the first."""
    for found, size in enumerate(other):
        if size == shape[dim] and prod(other[:found]) == prod(shape[:dim]):
            return found
    return None


def _fold_ahead(graph: fx.Graph) -> bool:
    """Folds into the weights of what comes after. Returns whether there was anything."""
    folded = False
    for node in varying(graph):
        affine = affine_of(node)
        layer = None if affine is None else _layer_after(affine)
        if affine is None or layer is None:
            continue
        x: Any = layer.args[0]
        channels = shape_of(x)[1] if is_call(layer, convolution) else shape_of(x)[-1]
        scale, shift = scale_and_shift(affine, channels)
        if shift is not None and is_call(layer, convolution) and any(p > 0 for p in layer.args[4]):  # type: ignore[union-attr, operator]
            continue  # zeros around the image are not shifted
        replace(layer, scaled_inputs(layer, scale, shift))
        replace(node, affine.x)
        folded = True
    return folded


def _layer_after(affine: Affine) -> fx.Node | None:
    """Returns the convolution or linear layer that alone reads an affine node, whose channels are
    its input channels; None if there is none."""
    node, dim = affine.node, affine.dim
    while True:
        user = only_user(node)
        if user is None or not user.args or user.args[0] is not node:
            return None
        if is_call(user, convolution, _aten.linear.default):
            channels = 1 if is_call(user, convolution) else len(shape_of(node)) - 1
            return user if dim in (None, channels) and _has_constants(user) else None
        if not is_call(user, _aten.permute.default, _aten.reshape.default):
            return None
        if dim is not None:
            dim = _dim_after(user, dim)
            if dim is None:
                return None
        node = user


def _spell_out(graph: fx.Graph) -> bool:
    """Makes one product and one sum of what is left: of batch norms, and of products and sums one
    after the other. Returns whether there was anything."""
    changed = False
    for node in varying(graph):
        chain = _chain(node)
        dims = {affine.dim for affine in chain} - {None}
        if len(dims) != 1 or [a.node.target for a in chain] in _SPELLED_OUT:
            continue
        (dim,) = dims
        shape = shape_of(node)
        scale, shift = None, None
        for affine in reversed(chain):
            scale, shift = composed(
                (scale, shift),
                scale_and_shift(affine, shape[dim]),  # type: ignore[index]
            )
        by = chain[-1].x
        ones = [1] * (len(shape) - 1 - dim)  # type: ignore[operator]
        for target, value in ((_aten.mul.Tensor, scale), (_aten.add.Tensor, shift)):
            if value is not None:
                value = with_shape(converted(value, dtype_of(node)), shape[dim], *ones)  # type: ignore[index]
                by = insert(node, target, by, value)
        replace(node, by)
        changed = True
    return changed


_SPELLED_OUT = (
    [_aten.mul.Tensor],
    [_aten.add.Tensor],
    [_aten.add.Tensor, _aten.mul.Tensor],
)


def _chain(node: fx.Node) -> list[Affine]:
    """Returns the affine nodes that feed each other and nobody else, the last one first; none if a
    node is not the last one."""
    affine = affine_of(node)
    user = only_user(node)
    if affine is None or (user is not None and _continues(affine_of(user), affine)):
        return []
    chain = [affine]
    while True:
        before = affine_of(chain[-1].x)
        if before is None or not _continues(chain[-1], before):
            return chain
        chain.append(before)


def _continues(affine: Affine | None, before: Affine) -> bool:
    """Returns whether an affine node follows another one, and could be one with it."""
    if affine is None or affine.x is not before.node or len(before.node.users) != 1:
        return False
    return affine.dim == before.dim or None in (affine.dim, before.dim)
