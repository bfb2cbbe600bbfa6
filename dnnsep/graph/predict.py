"""Where the values of a graph are going to lie, before it is decided what computes them.

What follows from it is decided by it: which tensors may be added in one pass, which views are free.
Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from dnnsep.graph import layout, ops
from dnnsep.graph.reductions import pixel_rows, reduced, reduction_of

aten = torch.ops.aten

_LAYOUT = "layout"

VIEWS = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.movedim.int,
        aten.movedim.intlist,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.slice.Tensor,
        aten.select.int,
        aten.narrow.default,
        aten.expand.default,
    }
)

_RESHAPES = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
    }
)

_IMAGES = frozenset(
    {
        ops.convolution,
        aten.max_pool2d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_nearest2d.default,
        aten.upsample_bilinear2d.vec,
        aten.upsample_bilinear2d.default,
        aten.max_pool2d_with_indices.default,
    }
)

_ROWS = frozenset({aten.linear.default, aten.layer_norm.default})

ELEMENTWISE = frozenset(
    {
        ops.activation,
        ops.channel_mean,
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.neg.default,
        aten.exp.default,
        aten.sqrt.default,
        aten.rsqrt.default,
        aten.tanh.default,
        aten.square.default,
        aten.pow.Tensor_Scalar,
        aten.maximum.default,
        aten.minimum.default,
        aten.relu.default,
        aten.softmax.int,
        aten._softmax.default,
        aten.mul.Scalar,
        aten.add.Scalar,
        aten.div.Scalar,
        aten.sub.Scalar,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.leaky_relu.default,
        aten.gelu.default,
    }
)


def predict(
    nodes: Iterable[fx.Node], known: Mapping[fx.Node, Any], placed: Mapping[fx.Node, Tensor]
) -> None:
    """Writes into each of a graph's nodes where its value is going to lie; ``known`` has the inputs
    and the constants, ``placed`` the places of what kernels compute."""
    for node, value in known.items():
        node.meta[_LAYOUT] = pytree.tree_map(_place_of, value)
    for node in nodes:
        if node.op == "call_function" and node not in known:
            node.meta[_LAYOUT] = placed[node] if node in placed else _result(node)


def _place_of(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def predicted(node: fx.Node) -> Any:
    """Returns where a node's value is going to lie: a tensor on the meta device."""
    return node.meta.get(_LAYOUT)


def is_view(node: fx.Node) -> bool:
    """Returns whether a node gives the elements of another's value in another shape."""
    return node.target in VIEWS and isinstance(node.args[0], fx.Node)


def view_of(node: fx.Node, like: Tensor) -> Tensor | None:
    """Returns where a view of a value lies that lies as ``like``; None where it takes a copy."""
    target: Any = aten.view.default if node.target in _RESHAPES else node.target
    shape = [node.meta["val"].shape] if node.target in _RESHAPES else node.args[1:]
    try:
        seen: Tensor = target(like, *shape, **node.kwargs)
    except (RuntimeError, ValueError):
        return None
    return seen


def copied(node: fx.Node, like: Tensor) -> Tensor:
    """Returns where a view's value lies that has to be copied from a value that lies as ``like``:
    what are neighbours in memory stay so."""
    after = node.meta["val"].shape
    minor = layout.minor_dim(like)
    if node.target in _RESHAPES:
        minor = layout.reshaped_minor(like.shape, minor, after)
    else:
        minor = layout.minor_dim(view_of(node, like))  # type: ignore[arg-type]
    return layout.dense(after, minor, like.dtype)


def _result(node: fx.Node) -> Any:
    value = node.meta["val"]
    if is_view(node):
        like = predicted(node.args[0])  # type: ignore[arg-type]
        if not isinstance(like, Tensor):
            return contiguous(value)
        seen = view_of(node, like)
        return copied(node, like) if seen is None else seen
    if node.target in _IMAGES and isinstance(value, Tensor) and value.dim() == 4:
        return layout.images(value.shape, value.dtype)
    if node.target in _ROWS:
        return layout.dense(value.shape, -1, value.dtype)
    reduction = reduction_of(node)
    if reduction is not None and isinstance(predicted(reduction.x), Tensor):
        like = predicted(reduction.x)
        if pixel_rows(like, reduction.dims) is not None:
            return reduced(like, reduction.dims, tuple(value.shape))
    if node.target in ELEMENTWISE or node.target is aten.cat.default:
        return _as_operands(node)
    return by_torch(node, predicted)


def _as_operands(node: fx.Node) -> Tensor:
    """Returns where a result lies whose operands it lies like: the first one of its own size that
    is rows, else the first one at all."""
    value = node.meta["val"]
    operands = [predicted(n) for n in node.all_input_nodes]
    if node.target is aten.cat.default:
        return layout.dense(value.shape, layout.minor_dim(operands[0]), value.dtype)
    for like in operands:
        if isinstance(like, Tensor) and like.shape == value.shape:
            minor = layout.minor_dim(like)
            if layout.rows_of(like, minor) is not None:
                return layout.dense(value.shape, minor, value.dtype)
    return layout.dense(value.shape, -1, value.dtype)


def by_torch(node: fx.Node, where: Callable[[fx.Node], Any]) -> Any:
    """Returns where torch's operator leaves a node's results for arguments that lie as ``where``
    says of their nodes. A result that shares an argument's memory is a view of its tensor."""
    # The meta device would choose other kernels than the CPU does, with other strides.
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes: dict[int, tuple[Tensor, Tensor]] = {}

        def fake(like: Any) -> Any:
            if not isinstance(like, Tensor):
                return like
            if id(like) not in fakes:
                bytes_of_it = layout.extent_bytes(like)
                memory = torch.empty(bytes_of_it // like.element_size(), dtype=like.dtype)
                made = memory.as_strided(like.shape, like.stride(), like.storage_offset())
                fakes[id(like)] = (like, made)
            return fakes[id(like)][1]

        arguments = fx.map_arg((node.args, node.kwargs), lambda n: pytree.tree_map(fake, where(n)))
        try:
            results = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
        except Exception:  # an operator that cannot be run without values
            return pytree.tree_map(contiguous, node.meta["val"])

    def real(result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        geometry = (result.shape, result.stride(), result.storage_offset())
        for like, made in fakes.values():
            if layout.is_alias(result, made):
                return like.as_strided(*geometry)
        return torch.empty_strided(*geometry[:2], dtype=result.dtype, device="meta")

    return pytree.tree_map(real, results)


def contiguous(value: Any) -> Any:
    """Returns where a contiguous tensor of this shape lies; what is no tensor as it is."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device="meta")
