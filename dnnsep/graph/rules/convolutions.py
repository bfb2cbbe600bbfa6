"""Rules that make one operator of all spellings of a 2-D or 1-D convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dnnsep.graph.ops import convolution
from dnnsep.graph.rewrite import (
    Rules,
    arguments,
    insert,
    is_call,
    is_floating,
    shape_of,
)
from dnnsep.graph.rules.shapes import reshaped

_aten = torch.ops.aten


def _convolution(node: fx.Node) -> fx.Node | None:
    """Convolutions of images, or of rows of pixels, that are not transposed."""
    given = arguments(node)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    rank = len(shape_of(weight)) - 2
    if given.get("transposed") or rank not in (1, 2) or not is_floating(x):
        return None
    stride, dilation = (_numbers(given[name], rank) for name in ("stride", "dilation"))
    padding = _padding(given["padding"], shape_of(weight)[2:], dilation)
    if rank == 1:  # as an image of one row
        stride, dilation, padding = [1, *stride], [1, *dilation], [0, 0, *padding]
        out, depth, width = shape_of(weight)
        weight = reshaped(node, weight, (out, depth, 1, width))
    shape = shape_of(x)
    batch = shape[:1] if len(shape) == rank + 2 else (1,)
    channels, *pixels = shape[-rank - 1 :]
    height = (1,) if rank == 1 else ()
    x = reshaped(node, x, (*batch, channels, *height, *pixels))
    new = insert(node, convolution, x, weight, bias, stride, padding, dilation, given["groups"])
    return reshaped(node, new, shape_of(node))


def _numbers(value: Any, rank: int) -> list[int]:
    """Returns an argument for each dimension; a single number holds for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _padding(value: Any, kernel: tuple[int, ...], dilation: list[int]) -> list[int]:
    """Returns the padding before and after each dimension."""
    if value == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [side for total in totals for side in (total // 2, total - total // 2)]
    if value == "valid":
        value = 0
    return [side for size in _numbers(value, len(kernel)) for side in (size, size)]


def _take_padding(node: fx.Node) -> fx.Node | None:
    """Zeros around the image before a convolution become its padding, and cropping too."""
    x, weight, bias, stride, padding, dilation, groups = node.args
    sides = padding_of(x)
    if sides is None or not isinstance(x, fx.Node):
        return None
    if not all(is_call(user, convolution) and user.args[0] is x for user in x.users):
        return None
    pairs = list(zip(sides, padding, strict=True))  # type: ignore[arg-type]
    if any(side < 0 < own for side, own in pairs):
        return None  # zeros in the place of what was cropped
    sums = [side + own for side, own in pairs]
    return insert(node, convolution, x.args[0], weight, bias, stride, sums, dilation, groups)


def padding_of(node: Any) -> list[int] | None:
    """Returns what a node adds around (N, C, H, W) images, as (top, bottom, left, right), if it
    adds zeros and nothing else; negative numbers crop."""
    if not is_call(node, _aten.constant_pad_nd.default) or arguments(node)["value"] != 0:
        return None
    sides = list(arguments(node)["pad"])
    if len(shape_of(node)) != 4 or any(sides[4:]):
        return None
    left, right, top, bottom = (*sides, 0, 0)[:4]
    return [top, bottom, left, right]


def _pad(node: fx.Node) -> fx.Node | None:
    """Padding by nothing goes; by a number it is a constant_pad_nd with that number."""
    given = arguments(node)
    x, sides, value = given["self"], given["pad"], given["value"]
    if given.get("mode", "constant") != "constant":
        return None
    if not any(sides):
        return x  # type: ignore[no-any-return]
    args = (x, sides, 0 if value is None else value)
    if node.args == args and node.target is _aten.constant_pad_nd.default:
        return None
    return insert(node, _aten.constant_pad_nd.default, *args)


RULES: Rules = {
    _aten.conv1d: (_convolution,),
    _aten.conv2d: (_convolution,),
    _aten.convolution.default: (_convolution,),
    _aten._convolution: (_convolution,),
    _aten.pad.default: (_pad,),
    _aten.constant_pad_nd.default: (_pad,),
    convolution: (_take_padding,),
}
