"""Rules for operators that only rearrange values: one operator for each kind of them, with all of
its arguments written out, and no lists of tensors.

The kinds are reshape, permute, expand, slice and cat.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from dnnsep.graph.rewrite import (
    Rules,
    arguments,
    insert,
    is_call,
    is_tensor,
    item_of,
    replace,
    shape_of,
    value_of,
)

_aten = torch.ops.aten


def reshaped(before: fx.Node, x: fx.Node, shape: tuple[int, ...]) -> fx.Node:
    """Returns a new node that gives the values of a node another shape; the node itself if it has
    that shape."""
    if shape_of(x) == shape:
        return x
    return insert(before, _aten.reshape.default, x, list(shape))


def permuted(before: fx.Node, x: fx.Node, dims: tuple[int, ...]) -> fx.Node:
    """Returns a new node with the dimensions of a node in another order; the node itself if they
    are in that order."""
    if dims == tuple(range(len(dims))):
        return x
    return insert(before, _aten.permute.default, x, list(dims))


def sliced(before: fx.Node, x: fx.Node, dim: int, start: int, end: int) -> fx.Node:
    """Returns a new node with a range of a node's values along a dimension; the node itself if
    that is all of them."""
    if (start, end) == (0, shape_of(x)[dim]):
        return x
    return insert(before, _aten.slice.Tensor, x, dim, start, end, 1)


def _reshape(node: fx.Node) -> fx.Node | None:
    """A reshape of a reshape is one reshape, to sizes without -1."""
    x: Any = node.args[0]
    shape = shape_of(node)
    if is_call(x, _aten.reshape.default):
        x = x.args[0]
    elif (
        node.target is _aten.reshape.default
        and tuple(node.args[1]) == shape  # type: ignore[arg-type]
        and shape_of(x) != shape
    ):
        return None
    return reshaped(node, x, shape)


def _permute(node: fx.Node) -> fx.Node | None:
    """A permutation of a permutation is one; one that moves only dimensions of size 1 is a
    reshape."""
    x: Any = node.args[0]
    dims = _order(node, x)
    if dims is None:
        return None
    shape = shape_of(x)
    wide = [dim for dim in dims if shape[dim] != 1]
    if wide == sorted(wide):
        return reshaped(node, x, shape_of(node))
    if is_call(x, _aten.permute.default):
        source, first = x.args
        return permuted(node, source, tuple(first[dim] for dim in dims))
    if node.target is _aten.permute.default and node.args[1] == list(dims):
        return None
    return permuted(node, x, dims)


def _order(node: fx.Node, x: fx.Node) -> tuple[int, ...] | None:
    """Returns which dimension of its input each dimension of a permutation is."""
    # What the operator makes of a tensor whose sizes tell its dimensions apart.
    marked = torch.empty([dim + 2 for dim in range(len(shape_of(x)))], device="meta")
    operator: Any = node.target
    result = operator(marked, *node.args[1:], **node.kwargs)
    return tuple(size - 2 for size in result.shape) if result.ndim == marked.ndim else None


def _expand(node: fx.Node) -> fx.Node | None:
    x, shape = node.args[0], shape_of(node)
    if node.target is _aten.expand.default and tuple(node.args[1]) == shape:  # type: ignore[arg-type]
        return None
    return insert(node, _aten.expand.default, x, list(shape))


def _slice(node: fx.Node) -> fx.Node | None:
    """A slice has its dimension and bounds as they are, and is not one of another slice."""
    given = arguments(node)
    x, step = given["self"], given["step"]
    dim = given["dim"] % len(shape_of(x))
    start, end, _ = slice(given["start"], given["end"]).indices(shape_of(x)[dim])
    end = max(start, end)
    if is_call(x, _aten.slice.Tensor) and x.args[1] == dim and len(x.args) == 5:
        source, _, first, _, before = x.args
        if before == step == 1:
            return sliced(node, source, dim, first + start, first + end)
    args = (x, dim, start, end, step)
    return None if node.args == args else insert(node, _aten.slice.Tensor, *args)


def _select(node: fx.Node) -> fx.Node | None:
    given = arguments(node)
    x, dim, index = given["self"], given["dim"], given["index"]
    if not isinstance(index, int):
        return None
    size = shape_of(x)[dim]
    part = sliced(node, x, dim % len(shape_of(x)), index % size, index % size + 1)
    return reshaped(node, part, shape_of(node))


def _narrow(node: fx.Node) -> fx.Node | None:
    given = arguments(node)
    x, start = given["self"], given["start"]
    if not isinstance(start, int):
        return None
    dim = given["dim"] % len(shape_of(x))
    start %= max(1, shape_of(x)[dim])
    return sliced(node, x, dim, start, start + given["length"])


def _stack(node: fx.Node) -> fx.Node | None:
    tensors = arguments(node)["tensors"]
    if not isinstance(tensors, (list, tuple)):
        return None
    shape = shape_of(node)
    dim = arguments(node)["dim"] % len(shape)
    one = (*shape[:dim], 1, *shape[dim + 1 :])
    return insert(node, _aten.cat.default, [reshaped(node, t, one) for t in tensors], dim)


def _cat(node: fx.Node) -> fx.Node | None:
    """The dimension is not negative, and there is something to concatenate."""
    tensors, dim = arguments(node)["tensors"], arguments(node)["dim"]
    if isinstance(tensors, (list, tuple)) and len(tensors) == 1:
        return tensors[0] if is_tensor(tensors[0]) else None
    if dim >= 0:
        return None
    return insert(node, _aten.cat.default, tensors, dim + len(shape_of(node)))


def _channel_shuffle(node: fx.Node) -> fx.Node | None:
    given = arguments(node)
    x, groups = given["self"], given["groups"]
    n, c, *pixels = shape_of(x)
    split = reshaped(node, x, (n, groups, c // groups, *pixels))
    order = (0, 2, 1, *range(3, 3 + len(pixels)))
    return reshaped(node, permuted(node, split, order), (n, c, *pixels))


def _copy(node: fx.Node) -> fx.Node | None:
    """What writing a source over a tensor leaves in it: the source, converted and expanded."""
    given = arguments(node)
    target, source = given["self"], given["src"]
    if value_of(source).dtype != value_of(target).dtype:
        source = insert(node, _aten._to_copy.default, source, dtype=value_of(target).dtype)
    if shape_of(source) == shape_of(target):
        return source  # type: ignore[no-any-return]
    return insert(node, _aten.expand.default, source, list(shape_of(target)))


_PERMUTATIONS = (
    _aten.moveaxis,
    _aten.movedim,
    _aten.mT,
    _aten.numpy_T,
    _aten.permute,
    _aten.swapaxes,
    _aten.swapdims,
    _aten.t,
    _aten.transpose,
)
_RESHAPES = (
    _aten._reshape_alias,
    _aten._unsafe_view,
    _aten.flatten,
    _aten.ravel,
    _aten.reshape,
    _aten.reshape_as,
    _aten.squeeze,
    _aten.unflatten,
    _aten.unsqueeze,
    _aten.view.default,
    _aten.view_as,
)

RULES: Rules = {
    **dict.fromkeys(_RESHAPES, (_reshape,)),
    **dict.fromkeys(_PERMUTATIONS, (_permute,)),
    **dict.fromkeys((_aten.broadcast_to, _aten.expand, _aten.expand_as), (_expand,)),
    _aten.slice.Tensor: (_slice,),
    _aten.select.int: (_select,),
    _aten.narrow: (_narrow,),
    _aten.stack.default: (_stack,),
    _aten.cat.default: (_cat,),
    _aten.concat.default: (_cat,),
    _aten.channel_shuffle.default: (_channel_shuffle,),
    _aten.copy.default: (_copy,),
}

# Lists of the pieces of their first argument, in order, along an argument "dim".
_SPLITS = (
    _aten.chunk,
    _aten.split,
    _aten.split_with_sizes,
    _aten.tensor_split,
    _aten.unbind,
    _aten.unsafe_chunk,
    _aten.unsafe_split,
    _aten.unsafe_split_with_sizes,
)


def take_lists_apart(graph: fx.Graph) -> None:
    """Replaces what splits a tensor into a list of tensors by slices."""
    for node in graph.nodes:
        if getattr(node.target, "overloadpacket", None) not in _SPLITS:
            continue
        given, values = arguments(node), node.meta["val"]
        if isinstance(values, (list, tuple)):
            _take_apart(node, given["self"], given["dim"], values)


def _take_apart(node: fx.Node, x: fx.Node, dim: int, values: Any) -> None:
    dim %= len(shape_of(x))
    pieces, start = [], 0
    for value in values:
        assert isinstance(value, Tensor)
        size = 1 if value.ndim < len(shape_of(x)) else value.shape[dim]
        pieces.append(reshaped(node, sliced(node, x, dim, start, start + size), tuple(value.shape)))
        start += size
    for user in list(node.users):
        item = item_of(user)
        if item is not None:
            replace(user, pieces[item[1]])
        else:
            user.args = _with_list(user.args, node, pieces)
            user.kwargs = _with_list(user.kwargs, node, pieces)


def _with_list(argument: Any, node: fx.Node, pieces: list[fx.Node]) -> Any:
    return fx.node.map_aggregate(argument, lambda a: pieces if a is node else a)
