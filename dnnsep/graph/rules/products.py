"""Rules that make a linear layer of a product with a constant matrix, and batch norms of one
spelling."""

from __future__ import annotations

import torch
from torch import fx

from dnnsep.graph.constants import is_constant
from dnnsep.graph.rewrite import (
    Rules,
    arguments,
    insert,
    is_floating,
    item_of,
    same_geometry,
    shape_of,
)
from dnnsep.graph.rules.shapes import permuted

_aten = torch.ops.aten


def _product(node: fx.Node) -> fx.Node | None:
    """x @ W with a constant (in, out) matrix W."""
    x, matrix = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(matrix, fx.Node)
    if not _is_matrix(matrix) or len(shape_of(x)) < 2 or is_constant(x):
        return None
    return insert(node, _aten.linear.default, x, permuted(node, matrix, (1, 0)))


def _sum_of_product(node: fx.Node) -> fx.Node | None:
    """bias + x @ W with a constant (in, out) matrix W and a constant (out,) bias."""
    given = arguments(node)
    bias, x, matrix = given["self"], given["mat1"], given["mat2"]
    if (given["beta"], given["alpha"]) != (1, 1) or not _is_matrix(matrix) or is_constant(x):
        return None
    if not is_constant(bias) or shape_of(bias) != shape_of(matrix)[1:]:
        return None
    return insert(node, _aten.linear.default, x, permuted(node, matrix, (1, 0)), bias)


def _is_matrix(node: fx.Node) -> bool:
    return is_floating(node) and len(shape_of(node)) == 2 and is_constant(node)


def _plus_bias(node: fx.Node) -> fx.Node | None:
    """A constant (out,) that is added to a linear layer without a bias."""
    given = arguments(node)
    if given["alpha"] != 1:
        return None
    for linear, bias in ((given["self"], given["other"]), (given["other"], given["self"])):
        if not isinstance(linear, fx.Node) or not isinstance(bias, fx.Node):
            continue
        if linear.target is not _aten.linear.default or arguments(linear)["bias"] is not None:
            continue
        fits = shape_of(bias) == shape_of(linear)[-1:] and same_geometry(node, linear)
        if fits and len(linear.users) == 1 and is_constant(bias):
            return insert(node, _aten.linear.default, *linear.args[:2], bias)
    return None


def _plus_product(node: fx.Node) -> fx.Node | None:
    """addcmul is an addition and a multiplication."""
    given = arguments(node)
    product = insert(node, _aten.mul.Tensor, given["tensor1"], given["tensor2"])
    if given["value"] != 1:
        product = insert(node, _aten.mul.Tensor, product, given["value"])
    return insert(node, _aten.add.Tensor, given["self"], product)


def _normalized(node: fx.Node) -> fx.Node | None:
    """The result of a batch norm that also returns its statistics."""
    source, index = item_of(node) or (None, 0)
    if source is None or source.target not in _NORMS or index:
        return None
    given = arguments(source)
    x, weight, bias, mean, variance = (given[name] for name in _NORM_TENSORS)
    if given.get("training") or mean is None:
        return None
    eps = given.get("eps", given.get("epsilon"))
    args = (x, weight, bias, mean, variance, False, given["momentum"], eps, False)
    return insert(node, _aten.batch_norm.default, *args)


_NORMS = (_aten._native_batch_norm_legit_no_training.default, _aten.native_batch_norm.default)
_NORM_TENSORS = ("input", "weight", "bias", "running_mean", "running_var")


def _into_first_factor(node: fx.Node) -> fx.Node | None:
    """The product of a @ b with a constant that is the same for all of a matrix, such as the
    temperature of a head: it goes into a."""
    for product, factor in (node.args, node.args[::-1]):
        if not (isinstance(product, fx.Node) and isinstance(factor, fx.Node)):
            return None
        alone = product.target is _aten.matmul.default and len(product.users) == 1
        if not alone or not is_constant(factor) or is_constant(product):
            continue
        shape = shape_of(factor)
        if shape[-2:] != (1, 1) or len(shape) > len(shape_of(product)) or node.kwargs:
            continue
        first, second = product.args
        assert isinstance(first, fx.Node)
        if len(shape_of(first)) != len(shape_of(product)):
            continue
        scaled = insert(node, _aten.mul.Tensor, first, factor)
        return insert(node, _aten.matmul.default, scaled, second)
    return None


RULES: Rules = {
    _aten.mul.Tensor: (_into_first_factor,),
    _aten.mm.default: (_product,),
    _aten.matmul.default: (_product,),
    _aten.addmm.default: (_sum_of_product,),
    _aten.addcmul.default: (_plus_product,),
    _aten.add.Tensor: (_plus_bias,),
}
RULES_OF_ITEMS = (_normalized,)
