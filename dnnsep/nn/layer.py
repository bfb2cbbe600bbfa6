"""A separable layer on torch tensors: in plain PyTorch, or on a backend with its weights packed.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dnnsep.backends import get_backend
from dnnsep.backends.auto import AutoBackend
from dnnsep.backends.base import Backend
from dnnsep.backends.executor import TORCH_DTYPES, Executor
from dnnsep.backends.fused import FusedBackend
from dnnsep.backends.fused_executor import FusedExecutor
from dnnsep.backends.tensors import TORCH_ACTIVATIONS
from dnnsep.codegen.layerstep import chosen_step
from dnnsep.codegen.pack import Packing
from dnnsep.dtypes import Array
from dnnsep.nn.memo import Memo, state_of
from dnnsep.problem import Pair, Problem
from dnnsep.weights import Weights

DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class Parameters(NamedTuple):
    """Depthwise (C·m, 1, kh, kw), its bias (C·m,), pointwise (OC, C·m, 1, 1), its bias (OC,)."""

    depthwise: Tensor
    depthwise_bias: Tensor | None
    pointwise: Tensor
    pointwise_bias: Tensor | None


class Geometry(NamedTuple):
    """As in Problem; the padding is (top, bottom, left, right)."""

    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    activations: tuple[str, ...]


def plain(x: Tensor, parameters: Parameters, geometry: Geometry, channels: int) -> Tensor:
    """Returns the layer's result on x, which has so many channels, by torch's own operators: any
    dtype and device, with gradients."""
    top, bottom, left, right = geometry.padding
    padding = (top, left)
    if padding != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    after_depthwise, after_pointwise = (
        TORCH_ACTIVATIONS[name].function for name in geometry.activations
    )
    weight, bias = parameters.depthwise, parameters.depthwise_bias
    stride, dilation = geometry.stride, geometry.dilation
    y = after_depthwise(F.conv2d(x, weight, bias, stride, padding, dilation, channels))
    return after_pointwise(F.conv2d(y, parameters.pointwise, parameters.pointwise_bias))


def problem_of(x: Tensor, parameters: Parameters, geometry: Geometry) -> Problem:
    """Returns the layer on x, (N, C, H, W), as a problem.

    Raises ValueError naming what a problem cannot have.
    """
    if x.dtype not in DTYPES:
        raise ValueError(f"dtype={x.dtype}: must be torch.float32 or torch.bfloat16")
    batch, channels, height, width = x.shape
    mid, _, kernel_height, kernel_width = parameters.depthwise.shape
    return Problem(
        batch=batch,
        in_channels=channels,
        out_channels=parameters.pointwise.shape[0],
        height=height,
        width=width,
        kernel=(kernel_height, kernel_width),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        channel_multiplier=mid // channels,
        bias=parameters.depthwise_bias is not None or parameters.pointwise_bias is not None,
        activations=geometry.activations,
        dtype=DTYPES[x.dtype],
    )


def prepare(
    x: Tensor,
    parameters: Parameters,
    geometry: Geometry,
    backend: str,
    packings: Memo[NDArray[np.uint8]],
    tune: bool = True,
) -> Executor:
    """Returns an executor for inputs like x.

    The fused kernel's weights are packed once for inputs of all sizes and kept in ``packings``; its
    plans may be measured where ``tune`` is true. Raises ValueError if the backend cannot run the
    layer.
    """
    problem = problem_of(x, parameters, geometry)

    def packed(packing: Packing) -> NDArray[np.uint8]:
        return packings.get(
            (packing, state_of(parameters)),
            parameters,
            lambda: packing.pack(weights_of(problem, parameters)),
        )

    def on(engine: Backend) -> Executor:
        if engine != FusedBackend() or not engine.supports(problem):
            return engine.prepare(problem, weights_of(problem, parameters))
        threads = torch.get_num_threads()
        return FusedExecutor(chosen_step(problem, packed, threads, tune=tune))

    with torch.no_grad():
        if backend == "auto":
            return AutoBackend().fastest(problem, on, tune)
        return on(get_backend(backend))


def runs_fused(name: str, problem: Problem) -> bool:
    """Returns whether a backend is the fused kernel, or auto where that can run the problem. Raises
    ValueError if none of auto's backends can run it."""
    engine = AutoBackend().choose(problem) if name == "auto" else get_backend(name)
    return engine == FusedBackend() and bool(engine.supports(problem))


def weights_of(problem: Problem, parameters: Parameters) -> Weights:
    """Returns a problem's weights; where just one stage has a bias, the other one gets zeros."""
    return Weights(
        array(parameters.depthwise),
        _bias(parameters.depthwise_bias, problem.mid_channels) if problem.bias else None,
        array(parameters.pointwise),
        _bias(parameters.pointwise_bias, problem.out_channels) if problem.bias else None,
    )


def array(tensor: Tensor) -> Array:
    """Returns a tensor's values as a contiguous f32 array."""
    # A copy: backends may keep what they are given, and the tensor may change.
    return tensor.detach().to(torch.float32, memory_format=torch.contiguous_format).numpy().copy()


def _bias(bias: Tensor | None, channels: int) -> Array:
    return array(torch.zeros(channels) if bias is None else bias)
