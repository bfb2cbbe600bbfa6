"""The two stages through Intel Extension for PyTorch.

Depthwise is oneDNN's grouped convolution (groups=C, 5-D weights) with the weights reordered once
and the activation fused as a post-op. Pointwise is a oneDNN matmul on the same memory seen as
(N·OH·OW) x C, with the bias fused as a binary post-op; IPEX offers no activation post-op for a
matmul, so that one runs in place on the result. The other two pointwise forms are what IPEX's own
model optimizer would use, kept to be compared: both fuse the activation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from dnnsep.backends.base import Verdict
from dnnsep.backends.onednn import onednn_verdict
from dnnsep.backends.versions import ipex_verdict, x86_verdict
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor

Pointwise = Literal["matmul", "inner_product", "conv1x1"]

# An activation's name within IPEX's prepacked operators, and the arguments it takes.
_POST_OPS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "none": ("", ()),
    "relu": ("relu_", ()),
    "relu6": ("hardtanh_", (0.0, 6.0)),
    "silu": ("swish_", ()),
    "hardswish": ("hardswish_", ()),
    "gelu": ("gelu_", ("none",)),
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
        _import_ipex()
        return onednn_verdict(problem)

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        from dnnsep.backends import tensors
        from dnnsep.backends.executor import Executor, Stage

        dw, dw_bias, pw, pw_bias = tensors.weight_tensors(problem, weights)
        stages, padding, input_shape = tensors.depthwise_input(problem)
        depthwise = _convolution(
            dw,
            dw_bias,
            problem.activations[0],
            stride=problem.stride,
            padding=padding,
            dilation=problem.dilation,
            groups=problem.mid_channels,
            input_shape=input_shape,
        )
        pointwise = {"matmul": _matmul, "inner_product": _inner_product, "conv1x1": _conv1x1}
        stages += [
            Stage("depthwise", depthwise),
            Stage("pointwise", pointwise[self.pointwise](problem, pw, pw_bias)),
        ]
        return Executor(self.name, problem, stages)


@cache
def _import_ipex() -> None:
    import intel_extension_for_pytorch  # noqa: F401  (registers the operators)


def _convolution(
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    input_shape: tuple[int, int, int, int],
) -> Callable[[Tensor], Tensor]:
    """A prepacked convolution with its activation as a post-op."""
    import torch

    from dnnsep.backends.tensors import keep_channels_last

    word, arguments = _POST_OPS[activation]
    prepack = getattr(torch.ops.ipex_prepack, f"convolution_{word}prepack")
    run = getattr(torch.ops.ipex_prepack, f"convolution_{word}run")
    context = prepack(
        weight, bias, stride, padding, dilation, groups, True, input_shape, *arguments
    )
    return keep_channels_last(lambda x: run(x, *arguments, context), input_shape)


def _conv1x1(problem: Problem, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return _convolution(weight, bias, problem.activations[1], input_shape=problem.mid_shape)


def _inner_product(
    problem: Problem, weight: Tensor, bias: Tensor | None
) -> Callable[[Tensor], Tensor]:
    import torch

    from dnnsep.backends.tensors import images_view, rows_view

    as_rows, as_images = rows_view(problem), images_view(problem)
    word, arguments = _POST_OPS[problem.activations[1]]
    run = getattr(torch.ops.ipex_prepack, f"linear_{word}run")
    context = torch.ops.ipex_prepack.linear_prepack(weight.flatten(1), bias, problem.out_pixels)
    return lambda x: as_images(run(as_rows(x), *arguments, context))


def _matmul(problem: Problem, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """IPEX's bmm_add is the operator that gives an f32 oneDNN matmul (mm and addmm go to MKL)."""
    import torch

    from dnnsep.backends.tensors import ACTIVATE_IN_PLACE, images_view, rows_view

    as_rows, as_images = rows_view(problem), images_view(problem)
    # (1, K, N) contiguous: some CPUs take four times as long for (1, N, K) transposed.
    right = weight.flatten(1).t().contiguous().unsqueeze(0)
    addend = torch.zeros(problem.out_channels, dtype=weight.dtype) if bias is None else bias
    addend = addend.view(1, 1, -1)
    activate = ACTIVATE_IN_PLACE[problem.activations[1]]
    bmm_add = torch.ops.torch_ipex.bmm_add

    def run(x: Tensor) -> Tensor:
        rows = bmm_add(addend, as_rows(x).unsqueeze(0), right, 1.0)
        return as_images(activate(rows))

    return run
