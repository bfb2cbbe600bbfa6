"""Rules for pooling and means over all pixels."""

from __future__ import annotations

import torch
from torch import fx

from dnnsep.graph.rewrite import Rules, arguments, dtype_of, insert, is_floating, item_of, shape_of
from dnnsep.graph.rules.shapes import reshaped

_aten = torch.ops.aten


def _mean_of_pixels(before: fx.Node, x: fx.Node) -> fx.Node:
    return insert(before, _aten.mean.dim, x, [2, 3], True)


def _adaptive(node: fx.Node) -> fx.Node | None:
    """Adaptive average pooling to one pixel is a mean, to the same size nothing, and to a size that
    divides the image's an ordinary pooling."""
    given = arguments(node)
    x = given["self"]
    if len(shape_of(x)) != 4:
        return None
    inner, outer = shape_of(x)[2:], shape_of(node)[2:]
    if inner == outer:
        return x  # type: ignore[no-any-return]
    if outer == (1, 1):
        return _mean_of_pixels(node, x)
    if any(i % o for i, o in zip(inner, outer, strict=True)):
        return None
    window = [i // o for i, o in zip(inner, outer, strict=True)]
    return insert(node, _aten.avg_pool2d.default, x, window, window)


def _average(node: fx.Node) -> fx.Node | None:
    """Average pooling with one window over the whole image is a mean."""
    given = arguments(node)
    x, window, divisor = given["self"], given["kernel_size"], given["divisor_override"]
    whole = len(shape_of(x)) == 4 and tuple(window * 2)[:2] == shape_of(x)[2:]
    if not whole or any(given["padding"]) or divisor is not None:
        return None
    return _mean_of_pixels(node, x)


def _mean(node: fx.Node) -> fx.Node | None:
    """A mean over the pixels of images keeps their dimensions, and a reshape takes them away."""
    given = arguments(node)
    x = given["self"]
    if not is_floating(x) or len(shape_of(x)) != 4 or dtype_of(x) != dtype_of(node):
        return None
    if not given["dim"] or sorted(dim % 4 for dim in given["dim"]) != [2, 3]:
        return None
    if node.args[1:] == ([2, 3], True) and not node.kwargs:
        return None
    return reshaped(node, _mean_of_pixels(node, x), shape_of(node))


def _values_of_max_pool(node: fx.Node) -> fx.Node | None:
    """Max pooling whose indices nobody reads."""
    source, index = item_of(node) or (None, 0)
    if source is None or source.target is not _aten.max_pool2d_with_indices.default or index:
        return None
    return insert(node, _aten.max_pool2d.default, *source.args, **source.kwargs)


RULES: Rules = {
    _aten.adaptive_avg_pool2d.default: (_adaptive,),
    _aten._adaptive_avg_pool2d.default: (_adaptive,),
    _aten.avg_pool2d.default: (_average,),
    _aten.mean.dim: (_mean,),
}
RULES_OF_ITEMS = (_values_of_max_pool,)
