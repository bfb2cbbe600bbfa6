"""Torch's own conv2d, stage by stage, channels-last: what a model runs before anybody tunes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnnsep.backends.base import Verdict
from dnnsep.backends.onednn_faults import grouped_verdict
from dnnsep.backends.versions import torch_verdict
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor


@dataclass(frozen=True)
class EagerBackend:
    name: str = "eager"

    def available(self) -> Verdict:
        return torch_verdict()

    def supports(self, problem: Problem) -> Verdict:
        return grouped_verdict(problem)  # torch's conv2d runs on oneDNN

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        verdict = self.supports(problem)
        if not verdict:
            raise ValueError(verdict.reason)
        import torch.nn.functional as F

        from dnnsep.backends import tensors
        from dnnsep.backends.executor import Executor, Stage

        dw, dw_bias, pw, pw_bias = tensors.weight_tensors(problem, weights)
        dw, pw = tensors.channels_last(dw), tensors.channels_last(pw)
        stages, padding = tensors.pad_if_asymmetric(problem)
        act_dw, act_pw = (tensors.ACTIVATE_IN_PLACE[a] for a in problem.activations)

        def depthwise(x: Tensor) -> Tensor:
            groups = problem.in_channels
            return act_dw(
                F.conv2d(x, dw, dw_bias, problem.stride, padding, problem.dilation, groups)
            )

        def pointwise(x: Tensor) -> Tensor:
            return tensors.channels_last(act_pw(F.conv2d(x, pw, pw_bias)))

        stages += [Stage("depthwise", depthwise), Stage("pointwise", pointwise)]
        return Executor(self.name, problem, stages)
