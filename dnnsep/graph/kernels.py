"""Adds kernels beside layers to a network: row-wise ones, reductions, pooling, copies.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import fx

from dnnsep.codegen.lang.isa import this_isa
from dnnsep.codegen.rowwise.special import PixelReduction, Rowwise
from dnnsep.codegen.rowwise.step import PixelReductionStep, RowwiseStep
from dnnsep.codegen.windows.poolstep import PoolStep
from dnnsep.codegen.windows.resizestep import ResizeStep
from dnnsep.codegen.windows.resizing import Resizing
from dnnsep.graph import layout
from dnnsep.graph.build import Builder, constant_value
from dnnsep.graph.network import Buffer, Native, Value
from dnnsep.graph.pooling import PoolGroup, pooling_of
from dnnsep.graph.predict import predicted
from dnnsep.graph.reductions import pixel_rows, reduced, reduction_of
from dnnsep.graph.rewrite import arguments, dtype_of, shape_of
from dnnsep.graph.rows import TENSORS, RowGroup, expression_of
from dnnsep.nn.layer import DTYPES

aten = torch.ops.aten


def add_rows(build: Builder, group: RowGroup) -> None:
    """Adds a row-wise kernel."""
    dim = group.channel_dim
    operands = {f"x{n}": _operand(build, node, group) for n, node in enumerate(group.inputs)}
    y = build.result(group.result, predicted(group.result))
    rows = layout.rows_of(y.like, dim)
    assert rows is not None
    of_operands = [layout.rows_of(value.like, dim) for value in operands.values()]
    dtype = TENSORS[dtype_of(group.result)]
    step = RowwiseStep(
        Rowwise(expression_of(group), rows.channels, dtype, this_isa()),
        images=group.images,
        pixels=rows.pixels // group.images,
        pitches=tuple(rows.channels if of is None else of.pitch for of in of_operands),
        y_pitch=rows.pitch,
        threads=build.settings.threads,
    )
    build.actions.append(Native("row-wise", step, operands | {"y": y}))
    build.values[group.result] = y


def add_pool(build: Builder, group: PoolGroup) -> None:
    """Adds a pooling of bytes."""
    x, y, sizes = _images(build, group.x, group.result)
    build.actions.append(Native("pool", PoolStep(group.pooling, **sizes), {"x": x, "y": y}))
    build.values[group.result] = y


def _operand(build: Builder, node: fx.Node, group: RowGroup) -> Value:
    """Returns an operand of a row-wise kernel as it reads it."""
    kind, dim, whole = group.kinds[node][0], group.channel_dim, group.whole
    constant = build.constants.get(node)
    if constant is not None and kind == "channels" and constant.numel() == 1:
        spread: Value = constant_value(constant.reshape(1).expand(whole[dim]).contiguous())
        return spread
    if constant is not None and kind == "pixels" and shape_of(node) != whole:
        rows_last = constant.expand(whole).movedim(dim, -1).contiguous()
        value: Value = constant_value(rows_last.movedim(-1, dim))
        return value
    value = build.as_rows(node, dim)
    rows = layout.rows_of(value.like, dim)
    assert rows is not None
    if kind == "pixels" or rows.dense or rows.pixels == 1:
        return value
    return build.copied_densely(value, dim)


def add_kernel(build: Builder, node: fx.Node) -> bool:
    """Adds a kernel that computes a single node, if there is one, and returns whether there is."""
    if not isinstance(node.meta.get("val"), torch.Tensor) or node.meta["val"].numel() == 0:
        return False
    return any(add(build, node) for add in (_add_reduction, _add_pool, _add_roll, _add_resize))


def _add_reduction(build: Builder, node: fx.Node) -> bool:
    """Adds a reduction of the pixels of images."""
    reduction = reduction_of(node)
    if reduction is None or dtype_of(node) not in DTYPES or reduction.x in build.constants:
        return False
    x: Value = build.values[reduction.x]
    rows = pixel_rows(x.like, reduction.dims)
    if rows is None or x.like.dtype != dtype_of(node):
        return False
    special = PixelReduction(
        reduction.before,
        reduction.name,
        rows.channels,
        DTYPES[dtype_of(node)],
        this_isa(),
        reduction.after,
    )
    step = PixelReductionStep(
        special, rows.images, rows.pixels, rows.pitch, rows.channels, build.settings.threads
    )
    y = Value(Buffer("arena"), reduced(x.like, reduction.dims, shape_of(node)))
    build.actions.append(Native("reduction", step, {"x0": x, "y": y}))
    build.values[node] = y
    return True


def _add_pool(build: Builder, node: fx.Node) -> bool:
    """Adds a max or average pooling."""
    found = pooling_of(node)
    if found is None or dtype_of(node) not in DTYPES:
        return False
    source, pooling = found
    x, y, sizes = _images(build, source, node)
    build.actions.append(Native("pool", PoolStep(pooling, **sizes), {"x": x, "y": y}))
    build.values[node] = y
    return True


def _images(build: Builder, source: fx.Node, node: fx.Node) -> tuple[Value, Value, dict[str, Any]]:
    """Returns images that a kernel reads, those that it writes, and what its step is told of
    them."""
    x, y = build.as_rows(source, 1), build.result(node, predicted(node))
    rows, out_rows = layout.rows_of(x.like, 1), layout.rows_of(y.like, 1)
    assert rows is not None
    assert out_rows is not None
    names = ("images", "channels", "height", "width")
    sizes = dict(zip(names, shape_of(source), strict=True))
    sizes |= {"x_pitch": rows.pitch, "y_pitch": out_rows.pitch}
    dtype, threads = TENSORS[dtype_of(node)], build.settings.threads
    return x, y, {**sizes, "dtype": dtype, "isa": this_isa(), "threads": threads}


def _add_roll(build: Builder, node: fx.Node) -> bool:
    """Adds a roll along some dimensions: of each its end and its beginning, copied."""
    if node.target is not aten.roll.default or len(node.args) < 3 or not node.args[2]:
        return False
    given = arguments(node)
    x: Value = build.values[given["self"]]
    y = Value(Buffer("arena"), predicted(node))
    halves = []
    for shift, dim in zip(given["shifts"], given["dims"], strict=True):
        size = x.like.shape[dim]
        moved = shift % size
        # From where, to where, how many.
        halves_of_dim = [(dim, 0, moved, size - moved), (dim, size - moved, 0, moved)]
        halves.append([half for half in halves_of_dim if half[3]])
    for corner in product(*halves):
        before, after = x.like, y.like
        for dim, start, target, length in corner:
            before, after = before.narrow(dim, start, length), after.narrow(dim, target, length)
        build.copied(x.seen(before), y.seen(after))
    build.values[node] = y
    return True


def _add_resize(build: Builder, node: fx.Node) -> bool:
    """Adds an upsampling of images."""
    if node.target not in _RESIZES or dtype_of(node) not in DTYPES:
        return False
    given = arguments(node)
    scales = given.get("scale_factors")
    x, y, sizes = _images(build, given["input"], node)
    _, _, height, width = shape_of(node)
    resizing = Resizing(
        _RESIZES[node.target],
        (height, width),
        (None, None) if scales is None else (scales[0], scales[1]),
        bool(given.get("align_corners")),
    )
    build.actions.append(Native("resize", ResizeStep(resizing, **sizes), {"x": x, "y": y}))
    build.values[node] = y
    return True


_RESIZES: dict[Any, str] = {
    aten.upsample_nearest2d.vec: "nearest",
    aten.upsample_bilinear2d.vec: "bilinear",
}
