"""Torch's own conv2d and linear, stage by stage, channels-last: what a model runs before anybody
tunes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnnsep.backends.base import Verdict, unquantized_verdict
from dnnsep.backends.onednn_faults import grouped_verdict
from dnnsep.backends.versions import torch_verdict
from dnnsep.problem import Pair, Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor
    from dnnsep.backends.operations import Operation
    from dnnsep.backends.tensors import View


@dataclass(frozen=True)
class EagerBackend:
    name: str = "eager"

    def available(self) -> Verdict:
        return torch_verdict()

    def supports(self, problem: Problem) -> Verdict:
        known = unquantized_verdict(problem, "torch's convolution")
        if not known:
            return known
        return grouped_verdict(problem)  # torch's conv2d runs on oneDNN

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        from dnnsep.backends.executor import Executor, Stage
        from dnnsep.backends.operations import operations
        from dnnsep.backends.tensors import pad_if_needed

        stages, padding = pad_if_needed(problem)
        for operation in operations(problem, weights):
            run = _run(operation, padding, problem.dtype)
            stages.append(Stage(operation.name, run))
            padding = (0, 0)
        return Executor(self.name, problem, stages)


def _run(operation: Operation, padding: Pair, dtype: str) -> View:
    """Returns what runs an operation on its channels-last input, given what is left to pad."""
    import torch.nn.functional as F

    from dnnsep.backends import tensors

    if operation.name == "mean":
        return tensors.mean
    weight, bias = tensors.weight_tensors(operation, dtype)
    activate = tensors.TORCH_ACTIVATIONS[operation.activation].in_place
    if operation.name == "linear":
        as_rows = tensors.rows_view(operation.input_shape)
        as_images = tensors.images_view(operation.output_shape)
        matrix = weight.flatten(1)
        return lambda x: as_images(activate(F.linear(as_rows(x), matrix, bias)))
    weight = tensors.channels_last(weight)
    stride, dilation, groups = operation.stride, operation.dilation, operation.groups

    def convolution(x: Tensor) -> Tensor:
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return tensors.channels_last(activate(y))

    return convolution
