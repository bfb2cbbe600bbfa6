"""Tencent's ncnn: NCHW with 4, 8 or 16 channels side by side, threads of its own OpenMP.

Its Winograd convolutions are turned off, so ordinary 3x3 ones are slower than ncnn's users have
them: they make fractions of integers and do not keep within the bound that engines are held to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnsep.backends.base import Verdict, unquantized_verdict
from dnnsep.backends.operations import Operation, operations
from dnnsep.dtypes import Array
from dnnsep.host.packages import installed_version
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

# What a convolution can have as its own, as its parameters: kind of activation, its constants.
_FUSED = {
    "none": "",
    "relu": " 9=1",
    "relu6": " 9=3 -23310=2,0.0,6.0",
    "hardswish": " 9=6 -23310=2,0.16666667,0.5",
    "sigmoid": " 9=4",
}

# Layers of their own, with their parameters; GELU's says not to use tanh.
_LAYERS = {
    "silu": ("Swish", ""),
    "gelu": ("GELU", "0=0"),
    "hardsigmoid": ("HardSigmoid", "0=0.16666667 1=0.5"),
}


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer with ncnn's type and numbered parameters; it reads what the one before it wrote."""

    name: str
    type: str
    parameters: str
    weight: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True)
class NcnnBackend:
    name: str = "ncnn"

    def available(self) -> Verdict:
        found = installed_version("ncnn")
        if found is None:
            return Verdict(False, "ncnn is not installed (extra: peers)")
        return Verdict(True, f"ncnn {found}")

    def supports(self, problem: Problem) -> Verdict:
        known = unquantized_verdict(problem, "ncnn")
        if not known:
            return known
        if problem.dtype == "bf16":
            # Told to store in bf16, its grouped form reads f32 as bf16.
            return Verdict(False, "ncnn runs in f32 only: its bf16 is wrong for grouped layers")
        return Verdict(True, "ncnn has a layer for each part")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import ncnn
        import torch

        from dnnsep.backends.executor import EngineExecutor

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        layers = _layers(problem, weights)
        net = _load(layers, torch.get_num_threads())
        blank = ncnn.Mat(np.zeros(problem.input_shape, np.float32), 0).clone()
        packings = {layer.name: _run(net, blank, layer.name, 1).elempack for layer in layers}
        # With a channel multiplier the depthwise layer takes its channels one by one.
        packing = 1 if problem.channel_multiplier > 1 else _packing(blank)

        # Python cannot read packed blobs, so a call includes ncnn's own unpacking of its output.
        def bind(x: Tensor) -> Callable[[], Tensor]:
            source = _packed(net, x, packing)
            as_tensor = _view(problem, _run(net, source, layers[-1].name))
            first, last = net.input_indexes()[0], net.output_indexes()[0]

            def call() -> Tensor:
                extractor = net.create_extractor()
                extractor.input(first, source)
                return as_tensor(extractor.extract(last)[1])

            return call

        impls = [f"{layer.name}:{layer.type}_pack{packings[layer.name]}" for layer in layers]
        return EngineExecutor(self.name, problem, bind, impls)


def _layers(problem: Problem, weights: Weights) -> list[_Layer]:
    layers = []
    for operation in operations(problem, weights):
        kind, parameters = _kind(operation)
        parameters += _FUSED.get(operation.activation, "")
        layers += _padding(operation)
        layers.append(_Layer(operation.name, kind, parameters, operation.weight, operation.bias))
        if operation.activation in _LAYERS:
            name = f"{operation.name}_{operation.activation}"
            layers.append(_Layer(name, *_LAYERS[operation.activation]))
    return layers


def _padding(operation: Operation) -> list[_Layer]:
    """Returns the layers that pad and crop, where the convolution itself cannot."""
    top, bottom, left, right = operation.padding
    if min(bottom, right) >= 0:
        return []
    return [
        _Layer("pad", "Padding", f"0={top} 1={max(bottom, 0)} 2={left} 3={max(right, 0)}"),
        # -233 stands for what is left of the size.
        _Layer("crop", "Crop", f"3=-233 4=-233 5=-233 6={max(-right, 0)} 7={max(-bottom, 0)}"),
    ]


def _kind(operation: Operation) -> tuple[str, str]:
    """Returns ncnn's type of layer and its parameters."""
    channels, bias = operation.output_shape[1], int(operation.bias is not None)
    if operation.name == "mean":
        return "Pooling", "0=1 4=1"
    sizes = f"0={channels} 5={bias} 6={operation.filters.size}"
    if operation.name == "linear":
        return "InnerProduct", f"0={channels} 1={bias} 2={operation.filters.size}"
    (kernel_h, kernel_w), (dilation_h, dilation_w) = operation.kernel, operation.dilation
    stride_h, stride_w = operation.stride
    top, bottom, left, right = operation.padding
    if min(bottom, right) < 0:
        top = bottom = left = right = 0
    geometry = (
        f"{sizes} 1={kernel_w} 11={kernel_h} 2={dilation_w} 12={dilation_h} 3={stride_w} "
        f"13={stride_h} 4={left} 15={right} 14={top} 16={bottom}"
    )
    if operation.name == "depthwise":
        return "ConvolutionDepthWise", f"{geometry} 7={operation.groups}"
    return "Convolution", geometry


def _load(layers: list[_Layer], threads: int) -> Any:
    """The network with its weights packed; its input is "x", a layer's output has its name."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    # Winograd's outputs take errors from their neighbours' inputs: no sum of products bounds them.
    net.opt.use_winograd_convolution = False
    # Its defaults allow fp16 in f32 models.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    lines, before = ["Input x 0 1 x"], "x"
    for layer in layers:
        lines.append(f"{layer.type} {layer.name} 1 1 {before} {layer.name} {layer.parameters}")
        before = layer.name
    text = "\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""])
    if net.load_param_mem(text) != 0:
        raise RuntimeError("ncnn did not accept the layers")
    with NamedTemporaryFile(suffix=".bin") as file:  # Python can give it weights by no other way
        for layer in layers:
            if layer.weight is not None:
                file.write(bytes(4) + layer.weight.tobytes())  # the four bytes say f32
                file.write(b"" if layer.bias is None else layer.bias.tobytes())
        file.flush()
        if net.load_model(file.name) != 0:
            raise RuntimeError("ncnn did not accept the weights")
    return net


def _run(net: Any, source: Any, name: str, as_stored: int = 0) -> Any:
    """The named blob for the input; as_stored=1 leaves it as the next layer would get it."""
    extractor = net.create_extractor()
    extractor.input("x", source)
    status, blob = extractor.extract(name, as_stored)
    if status != 0:
        raise RuntimeError(f"ncnn could not compute {name}: status {status}")
    return blob


def _packing(source: Any) -> int:
    """How many channels of a blob ncnn puts side by side for a layer that takes any number."""
    net = _load([_Layer("relu", "ReLU", "")], threads=1)
    packing: int = _run(net, source, "relu", 1).elempack
    return packing


def _packed(net: Any, x: Tensor, packing: int) -> Any:
    """A copy of x as a layer before would have left it: ``packing`` channels side by side."""
    import ncnn

    source, packed = ncnn.Mat(x.contiguous().numpy(), 0).clone(), ncnn.Mat()
    ncnn.convert_packing(source, packed, packing, net.opt)
    return packed


def _view(problem: Problem, sample: Any) -> Callable[[Any], Tensor]:
    """Sees a blob like the sample as f32 (N, OC, OH, OW); the tensor keeps the blob alive."""
    import torch

    if problem.batch == 1:
        return lambda blob: torch.from_numpy(np.asarray(blob)).view(problem.output_shape)
    image, following = (sample.batch(i).numpy() for i in (0, 1))
    # Of linear layers and means an image is a row of channels.
    inner = (*image.strides, 0, 0)[:3]
    strides = (following.ctypes.data - image.ctypes.data, *inner)
    as_strided = np.lib.stride_tricks.as_strided
    # NumPy is shown the first image only.
    return lambda blob: torch.from_numpy(
        as_strided(np.asarray(blob), problem.output_shape, strides)
    )
