"""What the values of a graph look like that is read from a file: their sizes and dtypes.

Torch's own way, its meta device, is written in Python for nearly every operator, and the first call
imports half of torch: that takes longer than all the rest of loading a model. Imports torch: import
it from inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dnnsep.backends.tensors import TORCH_ACTIVATIONS
from dnnsep.graph import ops
from dnnsep.graph.predict import ELEMENTWISE

_linear, _mean = torch.ops.aten.linear.default, torch.ops.aten.mean.dim


def without_data(value: Any) -> Any:
    """Returns a tensor of the same size and dtype on torch's meta device; what is no tensor as it
    is."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def looks(node: fx.Node) -> Any:
    """Returns the value of a node, whose arguments have theirs, without data.

    Raises ValueError, or whatever the operator does, where it cannot run on such arguments.
    """
    args, kwargs = cast("Any", fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"]))
    if node.target is ops.convolution:
        return _convolution(*args, **kwargs)
    if node.target is ops.activation:
        return _activation(*args, **kwargs)
    if node.target is _linear and len(args) > 1:
        return _product(*args, **kwargs)
    if node.target is _mean and len(args) > 1 and not kwargs and args[0].is_floating_point():
        return _reduced(*args)
    if node.target in ELEMENTWISE and (alike := _elementwise(args, kwargs)) is not None:
        return alike
    zeros, named = pytree.tree_map(_zeros, (args, kwargs))
    try:
        result = node.target(*zeros, **named)  # type: ignore[operator]
    except RuntimeError:  # some views cannot be had of values that share one element
        args, kwargs = pytree.tree_map(_on_meta, (args, kwargs))
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    return pytree.tree_map(without_data, result)


def _zeros(value: Any) -> Any:
    """Returns a tensor of zeros that takes no memory."""
    if not isinstance(value, Tensor):
        return value
    return torch.zeros((), dtype=value.dtype).expand(value.shape)


def _on_meta(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) else value


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Returns what ops.convolution does. Raises ValueError where that would fail."""
    (batch, channels, *size), (out, of_group, *kernel) = x.shape, weight.shape
    sides = (padding[0] + padding[1], padding[2] + padding[3])
    reach = [
        pixels + both - step * (taps - 1) - 1
        for pixels, both, step, taps in zip(size, sides, dilation, kernel, strict=True)
    ]
    fits = (
        (len(size), len(padding), len(stride)) == (2, 4, 2)
        and min(*stride, *dilation, groups, *kernel) > 0 <= min(reach)
        and channels == groups * of_group
        and out % groups == 0
        and x.dtype == weight.dtype
        and (bias is None or (bias.shape, bias.dtype) == ((out,), x.dtype))
    )
    if not fits:
        raise ValueError("convolution: of tensors that do not fit")
    steps = (room // step + 1 for room, step in zip(reach, stride, strict=True))
    return torch.empty((batch, out, *steps), dtype=x.dtype, device="meta")


def _activation(x: Tensor, name: str) -> Tensor:
    """Returns what ops.activation does. Raises ValueError where that would fail."""
    if name not in TORCH_ACTIVATIONS or not x.is_floating_point():
        raise ValueError(f"activation {name} of {x.dtype}: there is none")
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns what a linear layer does. Raises ValueError where that would fail."""
    out, depth = weight.shape
    fits = (
        x.dim() > 0
        and x.shape[-1] == depth
        and x.dtype == weight.dtype
        and (bias is None or (bias.shape, bias.dtype) == ((out,), x.dtype))
    )
    if not fits:
        raise ValueError("linear layer: of tensors that do not fit")
    return torch.empty((*x.shape[:-1], out), dtype=x.dtype, device="meta")


def _reduced(x: Tensor, dims: Sequence[int] | None, keep: bool = False) -> Tensor:
    """Returns what a mean over dimensions does. Raises ValueError where that would fail."""
    taken = {dim % max(1, x.dim()) for dim in dims or range(x.dim())}
    if any(not -x.dim() <= dim < x.dim() for dim in dims or ()) or len(taken) < len(dims or ()):
        raise ValueError(f"mean over {dims}: of {x.dim()} dimensions")
    shape = [1 if d in taken else n for d, n in enumerate(x.shape) if keep or d not in taken]
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _elementwise(args: Any, kwargs: Any) -> Tensor | None:
    """Returns what an operator on each element does of tensors of one floating-point dtype; None
    where that is not all that there is."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    dtypes = {x.dtype for x in tensors} | {x for x in leaves if isinstance(x, torch.dtype)}
    if len(dtypes) != 1 or not tensors[0].is_floating_point():
        return None
    shape = np.broadcast_shapes(*(tuple(x.shape) for x in tensors))  # torch's imports sympy
    return torch.empty(shape, dtype=tensors[0].dtype, device="meta")
