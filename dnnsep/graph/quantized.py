"""Reads what a quantised model's graph says of its tensors: the dialect quantized_decomposed, which
torch's and torchao's PT2E flow writes.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from dnnsep.dtypes import TENSOR_DTYPES, Array
from dnnsep.quantization import Affine

_QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
_DEQUANTIZE_WEIGHT = "quantized_decomposed.dequantize_per_channel.default"
# torchao's, and torch 2.8's own.
_AFFINE = ("torchao", "pt2e_quant")
# dtype: the limits that all its numbers are within.
_WHOLE_RANGE = {torch.uint8: (0, 255), torch.int8: (-128, 127)}
BYTES = {torch.uint8: "u8", torch.int8: "s8"}


@dataclass(frozen=True)
class Bytes:
    """A tensor of bytes: the node of it, of dtype ``u8`` or ``s8``, and what it stands for."""

    node: fx.Node
    dtype: str
    affine: Affine

    @property
    def unsigned(self) -> Affine:
        """What they stand for as u8."""
        return self.affine.unsigned(TENSOR_DTYPES[self.dtype])


@dataclass(frozen=True, eq=False)
class Scales:
    """The scales and zero points of a layer's tensors; ``weights`` are by stage, of its output
    channels. Where the output is f32 it has no ``destination`` and what is added no scale."""

    source: Affine
    middle: Affine | None
    destination: Affine | None
    weights: tuple[Array, ...]
    residual: Affine | None = None

    @property
    def of_tensors(self) -> tuple[Affine | None, ...]:
        """Those of all tensors but the weights."""
        return (self.source, self.middle, self.destination, self.residual)


def dequantized(node: Any) -> Bytes | None:
    """Returns the bytes that a node makes f32 of."""
    found = _per_tensor(node, _DEQUANTIZE)
    if found is None or not isinstance(node.args[0], fx.Node):
        return None
    return Bytes(node.args[0], *found)


def dequantize_by_user(graph: fx.Graph) -> None:
    """Gives each node that reads bytes as f32 a node of its own that makes f32 of them, so that
    none is left over when its user takes the bytes."""
    for node in list(graph.nodes):
        if dequantized(node) is None:
            continue
        for user in list(node.users)[1:]:
            with graph.inserting_after(node):
                user.replace_input_with(node, graph.node_copy(node))


def quantized(node: Any) -> Bytes | None:
    """Returns what a node quantises its argument to: bytes of all the numbers that they hold."""
    found = _per_tensor(node, _QUANTIZE)
    return None if found is None else Bytes(node, *found)


def weight_scales(node: Any) -> Array | None:
    """Returns the scales, by output channel, of weights s8 without zero points, which a node makes
    f32 of; None where it is no such node."""
    if not _calls(node, _DEQUANTIZE_WEIGHT) or node.kwargs or len(node.args) != 7:
        return None
    _, scales, zeros, axis, _, _, dtype = node.args
    of_scales, of_zeros = constant_of(scales), constant_of(zeros)
    if axis != 0 or dtype is not torch.int8 or of_scales is None:
        return None
    if zeros is not None and (of_zeros is None or bool(of_zeros.any())):
        return None
    found: Array = of_scales.detach().to(torch.float32).reshape(-1).numpy().astype(np.float32)
    return found


def affine_operator(node: fx.Node) -> str | None:
    """Returns ``quantize`` or ``dequantize`` of a node that does so by a scale and zero point for
    each block of a tensor; None of others."""
    space, _, name = str(node.target).removesuffix(".default").partition(".")
    kind = name.removesuffix("_affine")
    return kind if space in _AFFINE and name != kind in ("quantize", "dequantize") else None


def is_quantized(graph: fx.Graph) -> bool:
    """Returns whether anything in a graph is quantised."""
    return any(quantized(n) is not None or affine_operator(n) is not None for n in graph.nodes)


def constant_of(node: Any) -> Tensor | None:
    """Returns the tensor of a graph's module that a node gets."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, Tensor) else None


def _per_tensor(node: Any, name: str) -> tuple[str, Affine] | None:
    if not _calls(node, name) or set(node.kwargs) - {"out_dtype"} or len(node.args) != 6:
        return None
    _, scale, zero_point, least, most, dtype = node.args
    if _WHOLE_RANGE.get(dtype) != (least, most) or node.kwargs.get("out_dtype") is not None:
        return None
    if not isinstance(scale, float) or not isinstance(zero_point, int):
        return None
    return BYTES[dtype], Affine(scale, zero_point)


def _calls(node: Any, name: str) -> bool:
    return isinstance(node, fx.Node) and str(node.target) == name
