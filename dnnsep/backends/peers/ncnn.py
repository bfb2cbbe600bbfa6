"""Tencent's ncnn: NCHW with 4, 8 or 16 channels side by side, threads of its own OpenMP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnsep.backends.base import Verdict
from dnnsep.backends.versions import installed_version
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
}

# Layers of their own, with their parameters; GELU's says not to use tanh.
_LAYERS = {"silu": ("Swish", ""), "gelu": ("GELU", "0=0")}


@dataclass(frozen=True)
class _Layer:
    """A layer with ncnn's type and numbered parameters; it reads what the one before it wrote."""

    name: str
    type: str
    parameters: str


@dataclass(frozen=True)
class NcnnBackend:
    name: str = "ncnn"

    def available(self) -> Verdict:
        found = installed_version("ncnn")
        if found is None:
            return Verdict(False, "ncnn is not installed (extra: peers)")
        return Verdict(True, f"ncnn {found}")

    def supports(self, problem: Problem) -> Verdict:
        if problem.dtype == "bf16":
            # Told to store in bf16, its grouped form reads f32 as bf16 and answers wrongly.
            return Verdict(False, "ncnn has no bf16 depthwise convolution for x86")
        return Verdict(True, "ncnn has a layer for each part")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import ncnn
        import torch

        from dnnsep.backends.executor import EngineExecutor

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        weights.check(problem)
        layers = _layers(problem)
        net = _load(layers, weights, torch.get_num_threads())
        blank = ncnn.Mat(np.zeros(problem.input_shape, np.float32), 0).clone()
        packings = {layer.name: _run(net, blank, layer.name, 1).elempack for layer in layers}
        # With a channel multiplier the depthwise layer takes its channels one by one.
        packing = packings["depthwise"] if problem.channel_multiplier == 1 else 1

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


def _layers(problem: Problem) -> list[_Layer]:
    (kernel_h, kernel_w), (dilation_h, dilation_w) = problem.kernel, problem.dilation
    stride_h, stride_w = problem.stride
    top, bottom, left, right = problem.padding
    mid, out, bias = problem.mid_channels, problem.out_channels, int(problem.bias)
    depthwise = (
        f"0={mid} 1={kernel_w} 11={kernel_h} 2={dilation_w} 12={dilation_h} 3={stride_w} "
        f"13={stride_h} 4={left} 15={right} 14={top} 16={bottom} 5={bias} "
        f"6={mid * kernel_h * kernel_w} 7={problem.in_channels}"
    )
    pointwise = f"0={out} 1=1 5={bias} 6={out * mid}"
    layers = []
    for name, kind, parameters, activation in (
        ("depthwise", "ConvolutionDepthWise", depthwise, problem.activations[0]),
        ("pointwise", "Convolution", pointwise, problem.activations[1]),
    ):
        layers.append(_Layer(name, kind, parameters + _FUSED.get(activation, "")))
        if activation in _LAYERS:
            layers.append(_Layer(f"{name}_{activation}", *_LAYERS[activation]))
    return layers


def _load(layers: list[_Layer], weights: Weights, threads: int) -> Any:
    """The network with its weights packed; its input is "x", a layer's output has its name."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
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
        for weight, bias in (
            (weights.depthwise, weights.depthwise_bias),
            (weights.pointwise, weights.pointwise_bias),
        ):
            file.write(bytes(4) + weight.tobytes())  # the four bytes say f32
            file.write(b"" if bias is None else bias.tobytes())
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
        return lambda blob: torch.from_numpy(np.asarray(blob)[None])
    image, following = (sample.batch(i).numpy() for i in (0, 1))
    strides = (following.ctypes.data - image.ctypes.data, *image.strides)
    as_strided = np.lib.stride_tricks.as_strided
    # NumPy is shown the first image only.
    return lambda blob: torch.from_numpy(
        as_strided(np.asarray(blob), problem.output_shape, strides)
    )
