"""Recognizes what a single node of a traced model does.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dnnsep.backends.tensors import TORCH_ACTIVATIONS

Modules = Mapping[str, nn.Module]

# GELU and Hardtanh are known activations with some arguments only: activation_of_module checks.
_MODULES: dict[Any, str] = {
    activation.module: name for name, activation in TORCH_ACTIVATIONS.items() if name != "gelu"
}
_FUNCTIONS: dict[Any, str] = {
    activation.function: name
    for name, activation in TORCH_ACTIVATIONS.items()
    if name not in ("none", "gelu")
} | {torch.relu: "relu", torch.relu_: "relu"}
_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"}
_PRODUCTS = (operator.mul, torch.mul, "mul")
_MEANS = ("mean", torch.mean)
_RESHAPES = ("flatten", "view", "reshape", torch.flatten, torch.reshape)
ADDITIONS = (operator.add, operator.iadd, torch.add)


def only_reshapes(node: fx.Node, modules: Modules) -> bool:
    """Returns whether a node makes (N, C) of (N, C, 1, 1)."""
    (n, c, *pixels), after = shape_of(node.args[0]) or (0, 0), shape_of(node)
    if pixels != [1, 1] or after != (n, c):
        return False
    if node.op == "call_module":
        layer = modules[str(node.target)]
        return type(layer) is nn.Flatten and not has_hooks(layer)
    return node.target in _RESHAPES


def is_mean(node: fx.Node, modules: Modules) -> bool:
    """Returns whether a node takes the mean of (N, C, H, W) over all pixels."""
    if node.op == "call_module":
        layer = modules[str(node.target)]
        pools = type(layer) is nn.AdaptiveAvgPool2d and not has_hooks(layer)
        return pools and shape_of(node)[2:] == (1, 1)
    if node.target is F.adaptive_avg_pool2d:
        return shape_of(node)[2:] == (1, 1)
    if node.target not in _MEANS or set(node.kwargs) - {"dim", "keepdim"}:
        return False
    dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    are_numbers = isinstance(dims, (tuple, list)) and all(isinstance(dim, int) for dim in dims)
    return are_numbers and sorted(dim % 4 for dim in dims) == [2, 3]


def is_product(node: fx.Node) -> bool:
    """Returns whether a node multiplies two values without writing into one of them."""
    return node.op != "call_module" and node.target in _PRODUCTS and not node.kwargs


def activation_of(node: fx.Node, modules: Modules) -> str | None:
    """Returns the name of the activation that a node is; None if it is not a known one."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return None if has_hooks(module) else activation_of_module(module)
    if len(node.args) != 1 or set(node.kwargs) - {"inplace", "approximate"}:
        return None
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if node.op == "call_function" and node.target is F.gelu:
        return "gelu" if node.kwargs.get("approximate", "none") == "none" else None
    return _FUNCTIONS.get(node.target) if node.op == "call_function" else None


def activation_of_module(layer: nn.Module) -> str | None:
    """Returns the name of the activation that a module is; None if it is not a known one."""
    if isinstance(layer, nn.GELU):
        return "gelu" if layer.approximate == "none" else None
    if type(layer) is nn.Hardtanh:
        return "relu6" if (layer.min_val, layer.max_val) == (0, 6) else None
    return _MODULES.get(type(layer))


def has_hooks(module: nn.Module) -> bool:
    """Returns whether hooks watch or change the module's calls."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def shape_of(node: Any) -> tuple[int, ...]:
    """Returns the shape of a node's value on the example; empty where it is not a tensor."""
    meta: Any = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(getattr(meta, "shape", ()))


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """Returns the dtype of a node's value on the example; None where it is not a tensor."""
    return getattr(node.meta.get("tensor_meta"), "dtype", None)
