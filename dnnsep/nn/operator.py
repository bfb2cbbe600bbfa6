"""The operator ``dnnsep::separable_conv2d``, which torch.compile and torch.export see as one node.

Importing this module registers it: a program that torch.export saved needs that to be loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnsep.backends.executor import Executor
from dnnsep.nn.layer import Geometry, Parameters, plain, prepare
from dnnsep.nn.memo import Memo, state_of

_LIBRARY: Any = torch.library.Library("dnnsep", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "separable_conv2d(Tensor input, Tensor depthwise_weight, Tensor? depthwise_bias, "
    "Tensor pointwise_weight, Tensor? pointwise_bias, int[] stride, int[] padding, "
    "int[] dilation, str[] activations, str backend, bool tune=True) -> Tensor"
)

# The operator gets its weights anew with each call, so what is made of them is kept here: by them.
_MOST = 256
_executors: Memo[Executor] = Memo(_MOST, shared=True)
_packings: Memo[NDArray[np.uint8]] = Memo(_MOST, shared=True)


def separable_conv2d(
    input: Tensor,
    parameters: Parameters,
    geometry: Geometry,
    backend: str = "auto",
    tune: bool = True,
) -> Tensor:
    """Returns the operator's result on a layer, channels-last in memory.

    ``input`` is (N, C, H, W), f32 or bf16. Gradients are those of the plain layer. Raises
    ValueError if the backend cannot run the layer.
    """
    y: Tensor = torch.ops.dnnsep.separable_conv2d(
        input, *parameters, *(list(values) for values in geometry), backend, tune
    )
    return y


def forget() -> None:
    """Forgets what was made of the weights that the operator was called with."""
    _executors.clear()
    _packings.clear()


def _geometry(
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activations: Sequence[str],
) -> Geometry:
    top, bottom, left, right = padding
    return Geometry(
        (stride[0], stride[1]),
        (top, bottom, left, right),
        (dilation[0], dilation[1]),
        (activations[0], activations[1]),
    )


def _run(x: Tensor, *arguments: Any) -> Tensor:
    parameters, geometry = Parameters(*arguments[:4]), _geometry(*arguments[4:8])
    backend = arguments[8]
    tune = arguments[9] if len(arguments) > 9 else True  # torch leaves out what is the default
    key = (x.shape, x.dtype, geometry, backend, tune, state_of(parameters))
    executor = _executors.get(
        key, parameters, lambda: prepare(x, parameters, geometry, backend, _packings, tune)
    )
    return executor(x.contiguous(memory_format=torch.channels_last))


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    depthwise, _, pointwise, _, stride, padding, dilation, *_ = arguments
    sizes = [
        (x.shape[2 + axis] + sum(padding[2 * axis : 2 * axis + 2]) - reach) // stride[axis] + 1
        for axis in (0, 1)
        if (reach := dilation[axis] * (depthwise.shape[2 + axis] - 1) + 1)
    ]
    shape = (x.shape[0], pointwise.shape[0], *sizes)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.geometry, ctx.others = _geometry(*inputs[5:9]), len(inputs) - 5


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Returns the gradients of the plain layer, which is run again."""
    wanted = ctx.needs_input_grad[:5]
    with torch.enable_grad():  # type: ignore[no-untyped-call]
        tensors = [
            None if t is None else t.detach().requires_grad_(wants)
            for t, wants in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        x, *parameters = tensors
        assert x is not None
        y = plain(x, Parameters(*parameters), ctx.geometry, x.shape[1])  # type: ignore[arg-type]
        computed = iter(
            torch.autograd.grad(
                y,
                [t for t, wants in zip(tensors, wanted, strict=True) if wants and t is not None],
                gradient,
            )
        )
    gradients = [next(computed) if wants else None for wants in wanted]
    return (*gradients, *[None] * ctx.others)


_LIBRARY.impl("separable_conv2d", _run, "CPU")
torch.library.register_fake("dnnsep::separable_conv2d", _fake)
torch.library.register_autograd("dnnsep::separable_conv2d", _backward, setup_context=_keep)
