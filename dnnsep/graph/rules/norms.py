"""Rules that spell normalisations out."""

from __future__ import annotations

import torch
from torch import fx

from dnnsep.graph import ops
from dnnsep.graph.rewrite import Rules, arguments, insert, is_floating, shape_of
from dnnsep.graph.rules.shapes import reshaped

_aten = torch.ops.aten


def _group_norm(node: fx.Node) -> fx.Node | None:
    """A normalisation of images over all of their channels and pixels: its mean is that of the
    channels' means, and its variance the mean of what is left squared."""
    given = arguments(node)
    x = given["input"]
    if given["num_groups"] != 1 or len(shape_of(x)) != 4 or not is_floating(x):
        return None
    means = insert(node, _aten.mean.dim, x, [2, 3], True)
    rest = insert(node, _aten.sub.Tensor, x, insert(node, ops.channel_mean, means))
    variance = insert(node, ops.channel_mean, insert(node, ops.mean_square, rest))
    shifted = insert(node, _aten.add.Tensor, variance, given["eps"])
    y = insert(node, _aten.mul.Tensor, rest, insert(node, _aten.rsqrt.default, shifted))
    for target, values in ((_aten.mul.Tensor, given["weight"]), (_aten.add.Tensor, given["bias"])):
        if values is not None:
            y = insert(node, target, y, reshaped(node, values, (shape_of(x)[1], 1, 1)))
    return y


RULES: Rules = {_aten.group_norm.default: (_group_norm,)}
