"""Makes one convolution of several that read the same image and whose results are added.

A convolution is linear in its weights: the sum of convolutions of one image is the convolution with
the sum of their kernels, each widened by zeros to the same window. The image itself is a
convolution with a kernel of one pixel. So the blocks that some networks train with (RepVGG,
MobileOne, FastViT) become the single convolutions that they are meant to be deployed as.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from dnnsep.graph.affine import Affine, affine_of, scale_and_shift
from dnnsep.graph.algebra import (
    constant,
    converted,
    filled,
    hoist_constants,
    product,
    total,
    varying,
    weights_of,
    with_shape,
)
from dnnsep.graph.constants import is_constant
from dnnsep.graph.ops import convolution
from dnnsep.graph.parallel import join_parallel
from dnnsep.graph.rewrite import (
    arguments,
    dtype_of,
    insert,
    is_call,
    is_floating,
    layer_of,
    remove_dead,
    replace,
    same_geometry,
    shape_of,
)
from dnnsep.graph.window import Window, common_window

_aten = torch.ops.aten

# A merged kernel may be so much larger than its branches' together, if it is not depthwise.
_GROWTH = 1.15

# What a term of a sum is multiplied by, from the sum down to the term.
_Path: TypeAlias = tuple["Affine | float", ...]


@dataclass(frozen=True)
class _Term:
    """A value that is added to others, and what it is multiplied by before."""

    node: fx.Node
    path: _Path

    @property
    def image(self) -> Any:
        """What is convolved: a convolution's input, or the value itself."""
        return self.node.args[0] if _is_branch(self.node) else self.node


@dataclass(frozen=True)
class _Sum:
    """The terms of a sum, and the multipliers and constants from which its shift comes."""

    root: fx.Node
    terms: list[_Term]
    shifts: list[tuple[Affine, _Path]]


def merge(graph_module: fx.GraphModule) -> bool:
    """Merges convolutions of one image whose results are added or concatenated, and linear layers
    of one value, in place. Returns whether there were any.

    Results that are needed on their own stay.
    """
    graph = graph_module.graph
    if not hoist_constants(graph):
        return False
    merged = _merge_sums(graph)
    merged |= join_parallel(graph)
    if merged:
        remove_dead(graph)
        graph.lint()  # type: ignore[no-untyped-call]
        graph_module.recompile()
    return merged


def _merge_sums(graph: fx.Graph) -> bool:
    merged = False
    for node in reversed(varying(graph)):  # a sum before the sums in it
        if node.users and _is_image(node) and _is_sum(node):
            found = _sum_of(node)
            groups = _groups(found.terms)
            if groups:
                _rebuild(found, groups)
                merged = True
    return merged


def _is_image(node: fx.Node) -> bool:
    return node.op == "call_function" and is_floating(node) and len(shape_of(node)) == 4


def _is_branch(node: fx.Node) -> bool:
    """Returns whether a node is a convolution that only one other needs."""
    weights = [value for value in node.args[1:3] if value is not None]
    return (
        is_call(node, convolution)
        and len(node.users) == 1
        and all(is_constant(value) for value in weights)
    )


def _is_sum(node: fx.Node) -> bool:
    """Returns whether a node adds two values of its own shape, or multiplies such a sum."""
    affine = affine_of(node)
    if affine is not None:
        return len(affine.x.users) == 1 and affine.dim in (1, None) and _is_sum(affine.x)
    if not is_call(node, _aten.add.Tensor, _aten.sub.Tensor):
        return False
    return all(isinstance(x, fx.Node) and same_geometry(x, node) for x in node.args[:2])


def _sum_of(root: fx.Node) -> _Sum:
    """Returns the sum that a node is, taken apart as far as nobody else needs its parts."""
    found = _Sum(root, [], [])
    todo: list[tuple[fx.Node, _Path]] = [(root, ())]
    while todo:
        node, path = todo.pop(0)
        inner = _is_image(node) and (node is root or len(node.users) == 1)
        affine = affine_of(node) if inner else None
        if affine is not None and affine.dim in (1, None):
            found.shifts.append((affine, path))
            todo.insert(0, (affine.x, (*path, affine)))
        elif inner and affine is None and _is_sum(node):
            given = arguments(node)
            sign = -given["alpha"] if node.target is _aten.sub.Tensor else given["alpha"]
            todo.insert(0, (given["self"], path))
            todo.insert(1, (given["other"], path if sign == 1 else (*path, sign)))
        else:
            found.terms.append(_Term(node, path))
    return found


def _groups(terms: list[_Term]) -> list[list[_Term]]:
    """Returns the terms that become one convolution together."""
    branches: dict[Any, list[_Term]] = {}
    for term in terms:
        if _is_branch(term.node):
            key = (term.image, tuple(term.node.args[3]), term.node.args[6])  # type: ignore[arg-type]
            branches.setdefault(key, []).append(term)
    for (image, stride, _), group in branches.items():
        channels = shape_of(group[0].node)[1]
        if stride == (1, 1) and shape_of(image)[1] == channels:
            known = [t for group in branches.values() for t in group]
            group += [t for t in terms if t.node is image and t not in known]
    return [group for group in branches.values() if len(group) > 1 and _is_worthwhile(group)]


def _windows(group: list[_Term]) -> list[Window]:
    return [
        Window.of(term.node) if _is_branch(term.node) else Window((1, 1), (0, 0), (1, 1))
        for term in group
    ]


def _is_worthwhile(group: list[_Term]) -> bool:
    """Returns whether convolutions have a common window that is not much larger than theirs are
    together."""
    windows = _windows(group)
    common = common_window(windows)
    if common is None:
        return False
    image, groups = group[0].image, group[0].node.args[6]
    pixels = sum(w.pixels for w, term in zip(windows, group, strict=True) if _is_branch(term.node))
    return bool(groups == shape_of(image)[1] or common.pixels <= _GROWTH * pixels)


def _rebuild(found: _Sum, groups: list[list[_Term]]) -> None:
    """Puts the sum of merged convolutions, and of the terms that are left, in a sum's place."""
    root, scales = found.root, _Scales(found.root)
    shift: fx.Node | None = None
    for affine, path in found.shifts:
        own = scales.shift(affine)
        if own is not None:
            shift = total(shift, product(own, scales.of(path)))
    taken = {term.node for group in groups for term in group}
    values = []
    for group in groups:
        values.append(_merged(root, group, scales, shift))
        shift = None
    for term in found.terms:
        if term.node not in taken:
            scale = scales.of(term.path)
            if scale is not None:
                scale = with_shape(converted(scale, dtype_of(root)), shape_of(root)[1], 1, 1)
            values.append(
                term.node if scale is None else insert(root, _aten.mul.Tensor, term.node, scale)
            )
    value = values[0]
    for other in values[1:]:
        value = insert(root, _aten.add.Tensor, value, other)
    replace(root, value)


class _Scales:
    """The scales and shifts of the parts of a sum, as constants (C,), each made once."""

    def __init__(self, root: fx.Node) -> None:
        self._root = root
        self._channels = shape_of(root)[1]
        self._of: dict[fx.Node, tuple[fx.Node | None, fx.Node | None]] = {}

    def of(self, path: _Path) -> fx.Node | None:
        """Returns the product of the scales along a path; None if that is 1."""
        scale: fx.Node | None = None
        for step in path:
            if isinstance(step, Affine):
                scale = product(scale, self._both(step)[0])
            else:
                number = filled(self._root, step, self._channels)
                scale = product(scale, number)
        return scale

    def shift(self, affine: Affine) -> fx.Node | None:
        """Returns what an affine node adds; None if that is 0."""
        return self._both(affine)[1]

    def _both(self, affine: Affine) -> tuple[fx.Node | None, fx.Node | None]:
        if affine.node not in self._of:
            self._of[affine.node] = scale_and_shift(affine, self._channels)
        return self._of[affine.node]


def _merged(root: fx.Node, group: list[_Term], scales: _Scales, shift: fx.Node | None) -> fx.Node:
    """Returns the convolution that some terms and a shift are together."""
    windows = _windows(group)
    common = common_window(windows)
    assert common is not None
    branches = [term.node for term in group if _is_branch(term.node)]
    largest = max(branches, key=lambda node: Window.of(node).pixels)
    image, stride, groups = group[0].image, largest.args[3], largest.args[6]
    kernel: fx.Node | None = None
    for term, window in zip(group, windows, strict=True):
        bias: fx.Node | None = None
        if _is_branch(term.node):
            weight, bias = weights_of(term.node)
        else:
            weight = _identity(root, groups)  # type: ignore[arg-type]
        scale = scales.of(term.path)
        if scale is not None:
            column = with_shape(scale, shape_of(scale)[0], 1, 1, 1)
            weight = constant(root.graph, _aten.mul.Tensor, weight, column)
            bias = None if bias is None else product(bias, scale)
        kernel = total(kernel, _widened(weight, window.sides_in(common)))
        shift = total(shift, bias)
    assert kernel is not None
    dtype = dtype_of(root)
    padding = common.padding(shape_of(image)[2:], shape_of(root)[2:], stride)  # type: ignore[arg-type]
    new = insert(
        root,
        convolution,
        image,
        converted(kernel, dtype),
        None if shift is None else converted(shift, dtype),
        stride,
        padding,
        list(common.dilation),
        groups,
    )
    new.meta["layer"] = layer_of(largest)
    return new


def _widened(weight: fx.Node, sides: Sequence[int]) -> fx.Node:
    """Returns a weight with zeros around its window, (left, right, top, bottom)."""
    if not any(sides):
        return weight
    return constant(weight.graph, _aten.constant_pad_nd.default, weight, list(sides), 0)


def _identity(root: fx.Node, groups: int) -> fx.Node:
    """Returns the weight (C, C / groups, 1, 1) of the convolution that changes nothing."""
    channels = shape_of(root)[1]
    depth = channels // groups
    dtype = torch.promote_types(dtype_of(root), torch.float32)
    eye = constant(root.graph, _aten.eye.default, depth, dtype=dtype)
    all_groups = constant(root.graph, _aten.expand.default, eye, [groups, depth, depth])
    return with_shape(all_groups, channels, depth, 1, 1)
