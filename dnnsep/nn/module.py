"""The layer for users of PyTorch: it trains as plain PyTorch and runs on a backend in inference.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Proxy

from dnnsep.activations import ACTIVATIONS
from dnnsep.backends import get_backend
from dnnsep.codegen.extras import Extras
from dnnsep.codegen.layerstep import chosen_step
from dnnsep.codegen.pack import Packing
from dnnsep.nn.convolution import folded, padding_of, pair, weight_and_bias
from dnnsep.nn.layer import (
    Geometry,
    Parameters,
    plain,
    prepare,
    problem_of,
    runs_fused,
    weights_of,
)
from dnnsep.nn.operator import separable_conv2d
from dnnsep.nn.packed import PackedLayer, Ready, adds, fused, ready
from dnnsep.problem import Problem

Size = int | tuple[int, int]


@torch.fx.wrap  # which does not know yet whether there is a residual
def added(y: Tensor, residual: Tensor | None) -> Tensor:
    """Returns a result with the residual, if there is one."""
    return y if residual is None else y + residual


class SeparableConv2d(PackedLayer):
    """A depthwise convolution and a pointwise one, (N, C, H, W) to (N, OC, OH, OW).

    Arguments are torch.nn.Conv2d's, and ``channel_multiplier`` (depthwise outputs for each input
    channel), ``activations`` (after the depthwise and the pointwise stage, each of none, relu,
    relu6, silu, hardswish, gelu, sigmoid, hardsigmoid) and ``backend`` (as for
    ``dnnsep.get_backend``).

    In eval mode without gradients, on a CPU, in f32 or bf16, it runs on the backend: prepared for
    each input shape when it first comes, and again when the weights change (``train`` and ``eval``
    forget what was prepared, should another attribute change); the result is channels-last in
    memory. Otherwise, and while torch traces, it is plain PyTorch.
    ``runs_on`` says what ran. In eval mode torch.compile and torch.export see one operator,
    ``dnnsep::separable_conv2d``.

    ``depthwise`` and ``pointwise`` are ordinary torch.nn.Conv2d, and so are the keys of the state.

    Raises ValueError for what torch.nn.Conv2d, the problem or the backend cannot have.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        channel_multiplier: int = 1,
        activations: tuple[str, str] = ("none", "none"),
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for activation in activations:
            if activation not in ACTIVATIONS:
                known = ", ".join(ACTIVATIONS)
                raise ValueError(f"activations={activations!r}: must each be one of {known}")
        get_backend(backend)
        mid = in_channels * channel_multiplier
        place = {"device": device, "dtype": dtype}
        self.depthwise = nn.Conv2d(
            in_channels,
            mid,
            kernel_size,
            stride,
            padding,
            dilation,
            groups=in_channels,
            bias=bias,
            padding_mode=padding_mode,
            **place,
        )
        self.pointwise = nn.Conv2d(mid, out_channels, 1, bias=bias, **place)
        self.activations = activations
        self.backend = backend

    @classmethod
    def from_layers(
        cls,
        depthwise: nn.Conv2d,
        pointwise: nn.Conv2d,
        norms: tuple[nn.BatchNorm2d | None, nn.BatchNorm2d | None] = (None, None),
        activations: tuple[str, str] = ("none", "none"),
        backend: str = "auto",
    ) -> SeparableConv2d:
        """Returns the layer that does what existing ones do one after the other in eval mode.

        ``norms`` follow the depthwise and the pointwise convolution, before the activations:
        MobileNet's block. They are folded into weights and biases.
        """
        first, second = (
            folded(convolution, norm)
            for convolution, norm in zip((depthwise, pointwise), norms, strict=True)
        )
        layer = cls(1, 1, 1, activations=activations, backend=backend)
        layer.depthwise, layer.pointwise = first, second
        return layer.train(depthwise.training)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns the result on x: (N, C, H, W) or (C, H, W); ``residual`` is added to it."""
        if not isinstance(x, Proxy) and x.dim() == 3:
            whole = None if residual is None else residual.unsqueeze(0)
            return super().forward(x.unsqueeze(0), whole).squeeze(0)
        return super().forward(x, residual)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        x, geometry = self.padded(x)
        y = plain(x, self.tensors(), geometry, self.depthwise.in_channels)
        return cast("Tensor", added(y, residual))

    def traced(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if self.training:
            return self.plain(x, residual)
        x, geometry = self.padded(x)
        y = separable_conv2d(x, self.tensors(), geometry, self.backend, self.tune)
        return cast("Tensor", added(y, residual))

    def tensors(self) -> Parameters:
        (depthwise, depthwise_bias), (pointwise, pointwise_bias) = (
            weight_and_bias(layer) for layer in (self.depthwise, self.pointwise)
        )
        return Parameters(depthwise, depthwise_bias, pointwise, pointwise_bias)

    def pack(self, x: Tensor, residual: Tensor | None) -> Ready:
        inside, geometry = self.padded(x)
        tensors = self.tensors()
        problem = problem_of(inside, tensors, geometry)
        in_order = self.activations[1] == "none"
        # Auto compares engines, of which only the fused kernel adds a residual itself.
        if (
            residual is not None
            and inside is x
            and in_order
            and adds(problem, residual)
            and runs_fused(self.backend, problem)
        ):
            threads, extras = torch.get_num_threads(), Extras(residual=True)
            packed = self._packed(problem)
            return fused(chosen_step(problem, packed, threads, extras, self.tune), x.shape)
        made = ready(prepare(inside, tensors, geometry, self.backend, self._packings, self.tune))
        if inside is x:
            return made
        return made._replace(
            shape=x.shape, run=lambda x, residual: made.run(self.padded(x)[0], residual)
        )

    def _packed(self, problem: Problem) -> Callable[[Packing], NDArray[np.uint8]]:
        tensors = self.tensors()
        return lambda packing: self._packings.get(
            packing, tensors, lambda: packing.pack(weights_of(problem, tensors))
        )

    def extra_repr(self) -> str:
        return f"activations={self.activations}, backend={self.backend!r}"

    def padded(self, x: Tensor) -> tuple[Tensor, Geometry]:
        """Returns the input with the padding that the layer itself cannot do, and the layer's
        geometry with the padding that is left to it."""
        layer = self.depthwise
        # Sizes are no numbers while torch.jit or torch.fx traces.
        tracing = torch._C._get_tracing_state() is not None or isinstance(x, Proxy)
        if not tracing and (x.dim() != 4 or x.shape[1] != layer.in_channels):
            raise ValueError(
                f"x: shape {tuple(x.shape)}, must be (N, {layer.in_channels}, H, W) or "
                f"({layer.in_channels}, H, W)"
            )
        top, bottom, left, right = padding_of(layer)
        if layer.padding_mode != "zeros":
            x = F.pad(x, (left, right, top, bottom), mode=layer.padding_mode)
            top = bottom = left = right = 0
        padding = (top, bottom, left, right)
        dilation = pair(layer.dilation)
        return x, Geometry(pair(layer.stride), padding, dilation, self.activations)
