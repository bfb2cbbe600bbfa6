"""Each stage through plain torch's oneDNN operators: the way on for any torch >= 2.8.

Depthwise is a grouped convolution with weights reordered once, and so is any ordinary convolution
with its one group; pointwise and linear are torch's prepacked oneDNN linear, which oneDNN runs as
an inner product (torch 2.8: impl brgemm; torch 2.13: impl brg_matmul). They fuse the activation as
a post-op. A mean is torch's own average pooling: oneDNN's would take copies into its own tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dnnsep.backends.base import Verdict
from dnnsep.backends.onednn_faults import depthwise_verdict, padded_by_a_window
from dnnsep.backends.versions import torch_verdict, x86_verdict
from dnnsep.problem import Pair, Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from dnnsep.backends.executor import Executor
    from dnnsep.backends.operations import Operation, Shape
    from dnnsep.backends.tensors import View


@dataclass(frozen=True)
class OneDNNBackend:
    name: str = "onednn"

    def available(self) -> Verdict:
        x86 = x86_verdict()
        return torch_verdict() if x86 else x86

    def supports(self, problem: Problem) -> Verdict:
        import torch

        if not torch._C._has_mkldnn:
            return Verdict(False, "this torch was built without oneDNN")
        if problem.precision.quantized:
            return quantized_verdict(problem)
        return onednn_verdict(problem)

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        from dnnsep.backends import tensors
        from dnnsep.backends.executor import Executor, Stage
        from dnnsep.backends.operations import operations

        if problem.precision.quantized:
            return _quantized(problem, weights)
        stages, padding, shape = tensors.convolution_input(problem)
        for operation in operations(problem, weights):
            if operation.name == "mean":
                run: View = tensors.mean
            elif operation.name in ("pointwise", "linear"):
                run = _linear(operation, problem.dtype)
            else:
                run = _convolution(operation, padding, shape, problem.dtype)
            stages.append(Stage(operation.name, run))
        return Executor(self.name, problem, stages)


def _quantized(problem: Problem, weights: Weights) -> Executor:
    """Returns the executor of a quantised problem."""
    from dnnsep.backends import onednn_bytes
    from dnnsep.backends.executor import Executor, Stage
    from dnnsep.backends.operations import operations

    padding, stages = problem.symmetric_padding, []
    assert padding is not None
    for operation in operations(problem, weights):
        if operation.name in ("pointwise", "linear"):
            run = onednn_bytes.linear(operation)
        else:
            run = onednn_bytes.convolution(operation, padding, operation.input_shape)
        stages.append(Stage(operation.name, run))
    return Executor("onednn", problem, stages)


def quantized_verdict(problem: Problem) -> Verdict:
    """Returns whether torch's quantised oneDNN operators take a problem."""
    from dnnsep.codegen.lang.jit import cpu_features

    if problem.dtype not in ("u8s8", "u8s8f32"):
        reason = f"torch's oneDNN operators take u8 and give u8 or f32 ({problem.dtype})"
        return Verdict(False, reason)
    if not (cpu_features().get("avx512vnni") or cpu_features().get("avxvnni")):
        return Verdict(False, "oneDNN's sums of bytes may saturate on a CPU without VNNI")
    if problem.channel_multiplier > 1:
        return Verdict(False, "oneDNN is given no multiplier in a quantised problem here")
    if problem.symmetric_padding is None or padded_by_a_window(problem):
        return Verdict(False, "torch pads both sides of an axis alike, by less than a window")
    return depthwise_verdict(problem)


def _convolution(operation: Operation, padding: Pair, input_shape: Shape, dtype: str) -> View:
    """Returns what runs a convolution on inputs of a shape; with a channel multiplier they are
    repeated already, and the groups as many as the outputs."""
    import torch

    from dnnsep.backends.tensors import TORCH_ACTIVATIONS, keep_channels_last, weight_tensors

    weight, bias = weight_tensors(operation, dtype)
    groups = len(weight) if operation.name == "depthwise" else 1
    geometry = (padding, operation.stride, operation.dilation, groups)
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the last argument
    packed = reorder(weight.to_mkldnn(), *geometry, input_shape)
    convolution = torch.ops.mkldnn._convolution_pointwise
    post_op = TORCH_ACTIVATIONS[operation.activation].post_op
    return keep_channels_last(
        lambda x: convolution(x, packed, bias, *geometry, *post_op), input_shape
    )


def _linear(operation: Operation, dtype: str) -> View:
    """Returns what runs a pointwise convolution or a linear layer."""
    import torch

    from dnnsep.backends.tensors import TORCH_ACTIVATIONS, images_view, rows_view, weight_tensors

    weight, bias = weight_tensors(operation, dtype)
    batch, _, height, width = operation.input_shape
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1), batch * height * width)
    as_rows, as_images = rows_view(operation.input_shape), images_view(operation.output_shape)
    linear = torch.ops.mkldnn._linear_pointwise
    post_op = TORCH_ACTIVATIONS[operation.activation].post_op
    return lambda x: as_images(linear(as_rows(x), packed, bias, *post_op))


def onednn_verdict(problem: Problem) -> Verdict:
    """Returns whether oneDNN has kernels for the problem on this CPU, none known to be at fault."""
    import torch

    if problem.dtype == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Verdict(False, "oneDNN has no bf16 kernels for this CPU (AVX-512 is needed)")
    return depthwise_verdict(problem)
