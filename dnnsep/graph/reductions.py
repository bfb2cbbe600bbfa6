"""Which nodes reduce the pixels of images, channel by channel, and how those lie in memory.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from dnnsep.codegen.rowwise.expression import Expression, apply, pixels
from dnnsep.graph import ops
from dnnsep.graph.rewrite import arguments, shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Reduction:
    """What a node reduces: ``after`` of the reduction of ``before`` of each element, over some
    dimensions of x."""

    x: fx.Node
    dims: frozenset[int]
    name: str
    before: Expression
    after: Expression


@dataclass(frozen=True)
class PixelRows:
    """Images one after the other, of pixels that are rows of channels ``pitch`` elements apart."""

    images: int
    pixels: int
    channels: int
    pitch: int


def reduction_of(node: fx.Node) -> Reduction | None:
    """Returns what a node reduces; None where it is something else than a reduction by a kernel."""
    x: Expression = pixels(0)
    if node.target is aten.linalg_vector_norm.default:
        given = arguments(node)
        if given["ord"] not in (2, 2.0) or given["dtype"] is not None or given["dim"] is None:
            return None
        return _reduction(given, given["self"], "sum", apply("square", x), apply("sqrt", x))
    if node.target is ops.mean_square:
        assert isinstance(node.args[0], fx.Node)
        return Reduction(node.args[0], frozenset((2, 3)), "mean", apply("square", x), x)
    names: dict[Any, str] = {
        aten.mean.dim: "mean",
        aten.sum.dim_IntList: "sum",
        aten.amax.default: "max",
    }
    name = names.get(node.target)
    if name is None:
        return None
    given = arguments(node)
    if given.get("dtype") is not None or not given["dim"]:
        return None
    return _reduction(given, given["self"], name, x, x)


def _reduction(
    given: dict[str, Any], x: fx.Node, name: str, before: Expression, after: Expression
) -> Reduction:
    rank = len(shape_of(x))
    return Reduction(x, frozenset(dim % rank for dim in given["dim"]), name, before, after)


def pixel_rows(like: Tensor, dims: Collection[int]) -> PixelRows | None:
    """Returns a tensor as images whose pixels are its dimensions ``dims``; None where it does not
    lie so: the channels, dense, vary faster than the pixels, and the images slower."""
    size, strides = like.shape, like.stride()
    inner = sorted((d for d in dims if size[d] > 1), key=lambda d: strides[d])
    if not inner:
        return None
    kept = [d for d in range(like.dim()) if d not in dims and size[d] > 1]
    channel_dims = [d for d in kept if strides[d] < strides[inner[0]]]
    image_dims = [d for d in kept if d not in channel_dims]
    channels, pitch = prod(size[d] for d in channel_dims), strides[inner[0]]
    count = prod(size[d] for d in inner)
    if not (
        _dense(like, channel_dims, 1)
        and channels <= pitch
        and _dense(like, inner, pitch)
        and _dense(like, image_dims, pitch * count)
    ):
        return None
    return PixelRows(prod(size[d] for d in image_dims), count, channels, pitch)


def reduced(like: Tensor, dims: Collection[int], shape: tuple[int, ...]) -> Tensor:
    """Returns where the result of a reduction of pixels lies, which has the shape of a node's
    value: as the input, without the pixels."""
    kept = [d for d in range(like.dim()) if d not in dims]
    order = sorted(kept, key=lambda d: (like.stride(d), -d))
    strides, step = [0] * like.dim(), 1
    for d in order:
        strides[d] = step
        step *= like.shape[d]
    whole = [1 if d in dims else like.shape[d] for d in range(like.dim())]
    result = torch.empty_strided(whole, strides, dtype=like.dtype, device="meta")
    if len(shape) == like.dim():
        return result
    for d in sorted(dims, reverse=True):
        result = result.squeeze(d)
    return result


def _dense(like: Tensor, dims: Collection[int], step: int) -> bool:
    """Returns whether dimensions lie one inside of the other without gaps, the innermost with a
    stride."""
    for d in sorted(dims, key=lambda d: like.stride(d)):
        if like.stride(d) != step:
            return False
        step *= like.shape[d]
    return True
