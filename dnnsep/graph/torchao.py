"""Reads the affine operators of torchao, which some observers of PT2E write, as those of
quantized_decomposed.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dnnsep.graph.quantized import affine_operator, constant_of
from dnnsep.graph.rewrite import insert, replace, shape_of

# The numbers of an affine operator's arguments, and what the others are by default.
_ARGUMENTS = ("input", "block_size", "scale", "zero_point", "dtype", "least", "most")
_OTHERS = {"zero_point_domain": "INT", "output_dtype": torch.float32}


def decompose_affine(graph: fx.Graph) -> None:
    """Lets the operators of quantized_decomposed take the places of affine ones where a tensor has
    one scale, or weights one for each output channel, which do not depend on the input."""
    for node in list(graph.nodes):
        name = affine_operator(node)
        found = None if name is None else _decomposed(node, name)
        if found is not None:
            replace(node, found)


def _decomposed(node: fx.Node, name: str) -> fx.Node | None:
    given = dict(zip((*_ARGUMENTS, *_OTHERS), node.args, strict=False)) | dict(node.kwargs)
    if any(given.get(other, default) != default for other, default in _OTHERS.items()):
        return None
    if not given.keys() >= set(_ARGUMENTS) or not given.keys() <= {*_ARGUMENTS, *_OTHERS}:
        return None
    x, block, scale, zero_point, dtype, least, most = (given[key] for key in _ARGUMENTS)
    of_scale, of_zero = constant_of(scale), constant_of(zero_point)
    if of_scale is None or of_zero is None:
        return None
    whole, limits = shape_of(x), (least, most, dtype)  # type: ignore[arg-type]
    operators: Any = torch.ops.quantized_decomposed
    if tuple(block) == whole and of_scale.numel() == 1:  # type: ignore[arg-type]
        operator = getattr(operators, f"{name}_per_tensor").default
        return insert(node, operator, x, float(of_scale), int(of_zero), *limits)
    of_channel = tuple(block) == (1, *whole[1:])  # type: ignore[arg-type]
    if name == "dequantize" and of_channel and of_scale.numel() == whole[0]:
        operator = operators.dequantize_per_channel.default
        return insert(node, operator, x, scale, zero_point, 0, *limits)
    return None
