"""The two stages through plain torch's oneDNN operators: the way on for any torch >= 2.8.

Depthwise is a grouped convolution with weights reordered once; pointwise is torch's prepacked
oneDNN linear, which oneDNN runs as an inner product (torch 2.8: impl brgemm; torch 2.13: impl
brg_matmul). Both fuse the activation as a post-op.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dnnsep.backends.base import Verdict
from dnnsep.backends.onednn_faults import depthwise_verdict
from dnnsep.backends.versions import torch_verdict, x86_verdict
from dnnsep.problem import Problem
from dnnsep.weights import Weights

# An activation as torch's fusion passes name it: attribute, scalars, algorithm.
POST_OPS: dict[str, tuple[str, list[Any], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "silu": ("swish", [], ""),
    "hardswish": ("hardswish", [], ""),
    "gelu": ("gelu", [], "none"),
}


if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor


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
        return onednn_verdict(problem)

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        import torch

        from dnnsep.backends import tensors
        from dnnsep.backends.executor import Executor, Stage

        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        dw, dw_bias, pw, pw_bias = tensors.weight_tensors(problem, weights)
        stages, padding, input_shape = tensors.depthwise_input(problem)
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the last argument
        dw_packed = reorder(
            dw.to_mkldnn(),
            padding,
            problem.stride,
            problem.dilation,
            problem.mid_channels,
            input_shape,
        )
        pw_packed = torch.ops.mkldnn._reorder_linear_weight(pw.flatten(1), problem.out_pixels)
        dw_post, pw_post = (POST_OPS[a] for a in problem.activations)
        convolution = torch.ops.mkldnn._convolution_pointwise
        as_rows, as_images = tensors.rows_view(problem), tensors.images_view(problem)
        linear = torch.ops.mkldnn._linear_pointwise

        def depthwise(x: Tensor) -> Tensor:
            y: Tensor = convolution(
                x,
                dw_packed,
                dw_bias,
                padding,
                problem.stride,
                problem.dilation,
                problem.mid_channels,
                *dw_post,
            )
            return y

        def pointwise(x: Tensor) -> Tensor:
            return as_images(linear(as_rows(x), pw_packed, pw_bias, *pw_post))

        stages += [
            Stage("depthwise", tensors.keep_channels_last(depthwise, input_shape)),
            Stage("pointwise", pointwise),
        ]
        return Executor(self.name, problem, stages)


def onednn_verdict(problem: Problem) -> Verdict:
    """Whether oneDNN has kernels for the problem on this CPU, and none known to be at fault."""
    import torch

    if problem.dtype == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Verdict(False, "oneDNN has no bf16 kernels for this CPU (AVX-512 is needed)")
    return depthwise_verdict(problem)
