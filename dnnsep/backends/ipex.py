"""Each stage through Intel Extension for PyTorch.

Depthwise is oneDNN's grouped convolution (groups=C, 5-D weights) with the weights reordered once
and the activation fused as a post-op; an ordinary convolution is the same with one group. Pointwise
and linear are a oneDNN matmul on the same memory seen as (N·OH·OW) x C, with the bias fused as a
binary post-op; IPEX offers no activation post-op for a matmul, so that one runs in place on the
result. The other two pointwise forms are what IPEX's own model optimizer would use, kept to be
compared: both fuse the activation. A mean is torch's own average pooling.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from dnnsep.backends.base import Verdict, unquantized_verdict
from dnnsep.backends.onednn import onednn_verdict
from dnnsep.backends.versions import ipex_verdict, x86_verdict
from dnnsep.problem import Pair, Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor
    from dnnsep.backends.operations import Operation, Shape
    from dnnsep.backends.tensors import View

Pointwise = Literal["matmul", "inner_product", "conv1x1"]

# An activation's name within IPEX's prepacked operators, and the arguments it takes.
_POST_OPS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "none": ("", ()),
    "relu": ("relu_", ()),
    "relu6": ("hardtanh_", (0.0, 6.0)),
    "silu": ("swish_", ()),
    "hardswish": ("hardswish_", ()),
    "gelu": ("gelu_", ("none",)),
    "sigmoid": ("sigmoid_", ()),
    "hardsigmoid": ("hardsigmoid_", ()),
}


@dataclass(frozen=True)
class IpexBackend:
    pointwise: Pointwise = "matmul"

    def __post_init__(self) -> None:
        forms = Pointwise.__args__  # type: ignore[attr-defined]
        if self.pointwise not in forms:
            raise ValueError(f"pointwise={self.pointwise!r}: must be one of {', '.join(forms)}")

    @property
    def name(self) -> str:
        return "ipex" if self.pointwise == "matmul" else f"ipex:pointwise={self.pointwise}"

    def available(self) -> Verdict:
        x86 = x86_verdict()
        return ipex_verdict() if x86 else x86

    def supports(self, problem: Problem) -> Verdict:
        known = unquantized_verdict(problem, "IPEX")
        if not known:
            return known
        _import_ipex()
        return onednn_verdict(problem)

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        from dnnsep.backends import tensors
        from dnnsep.backends.executor import Executor, Stage
        from dnnsep.backends.operations import operations

        forms = {"matmul": _matmul, "inner_product": _inner_product, "conv1x1": _conv1x1}
        stages, padding, shape = tensors.convolution_input(problem)
        for operation in operations(problem, weights):
            if operation.name == "mean":
                run: View = tensors.mean
            elif operation.name in ("pointwise", "linear"):
                run = forms[self.pointwise](operation, problem.dtype)
            else:
                run = _convolution(operation, padding, shape, problem.dtype)
            stages.append(Stage(operation.name, run))
        return Executor(self.name, problem, stages)


@cache
def _import_ipex() -> None:
    import intel_extension_for_pytorch  # noqa: F401  (registers the operators)


def _convolution(operation: Operation, padding: Pair, input_shape: Shape, dtype: str) -> View:
    """Returns what runs a prepacked convolution on inputs of a shape, with its activation as a
    post-op; with a channel multiplier they are repeated already."""
    import torch

    from dnnsep.backends.tensors import keep_channels_last, weight_tensors

    weight, bias = weight_tensors(operation, dtype)
    groups = len(weight) if operation.name == "depthwise" else 1
    word, arguments = _POST_OPS[operation.activation]
    prepack = getattr(torch.ops.ipex_prepack, f"convolution_{word}prepack")
    run = getattr(torch.ops.ipex_prepack, f"convolution_{word}run")
    context = prepack(
        weight,
        bias,
        operation.stride,
        padding,
        operation.dilation,
        groups,
        True,
        input_shape,
        *arguments,
    )
    return keep_channels_last(lambda x: run(x, *arguments, context), input_shape)


def _conv1x1(operation: Operation, dtype: str) -> View:
    return _convolution(operation, (0, 0), operation.input_shape, dtype)


def _inner_product(operation: Operation, dtype: str) -> View:
    import torch

    from dnnsep.backends.tensors import images_view, rows_view, weight_tensors

    weight, bias = weight_tensors(operation, dtype)
    as_rows, as_images = rows_view(operation.input_shape), images_view(operation.output_shape)
    word, arguments = _POST_OPS[operation.activation]
    run = getattr(torch.ops.ipex_prepack, f"linear_{word}run")
    batch, _, height, width = operation.input_shape
    context = torch.ops.ipex_prepack.linear_prepack(weight.flatten(1), bias, batch * height * width)
    return lambda x: as_images(run(as_rows(x), *arguments, context))


def _matmul(operation: Operation, dtype: str) -> View:
    """IPEX's bmm_add is the operator that gives an f32 oneDNN matmul (mm and addmm go to MKL)."""
    import torch

    from dnnsep.backends.tensors import (
        TORCH_ACTIVATIONS,
        images_view,
        rows_view,
        weight_tensors,
    )

    weight, bias = weight_tensors(operation, dtype)
    as_rows, as_images = rows_view(operation.input_shape), images_view(operation.output_shape)
    # (1, K, N) contiguous: some CPUs take four times as long for (1, N, K) transposed.
    right = weight.flatten(1).t().contiguous().unsqueeze(0)
    addend = torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias
    addend = addend.view(1, 1, -1)
    activate = TORCH_ACTIVATIONS[operation.activation].in_place
    bmm_add = torch.ops.torch_ipex.bmm_add

    def run(x: Tensor) -> Tensor:
        rows = bmm_add(addend, as_rows(x).unsqueeze(0), right, 1.0)
        return as_images(activate(rows))

    return run
