"""The oracle: a problem's stages computed naively in NumPy with float64 accumulation, and how far a
correct backend may be from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dnnsep.activations import Exact
from dnnsep.backends.base import Verdict
from dnnsep.dtypes import Array
from dnnsep.problem import Problem
from dnnsep.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from dnnsep.backends.executor import Executor


@dataclass(frozen=True)
class ReferenceBackend:
    """Runs a problem by the definition, slowly."""

    name: str = "reference"

    def available(self) -> Verdict:
        return Verdict(True, "NumPy")

    def supports(self, problem: Problem) -> Verdict:
        return Verdict(True, "runs everything, slowly")

    def prepare(self, problem: Problem, weights: Weights) -> Executor:
        weights.check(problem)
        import torch

        from dnnsep.backends.executor import OUTPUT_DTYPES, Executor, Stage
        from dnnsep.backends.tensors import channels_last

        def run(x: Tensor) -> Tensor:
            y = naive(problem, weights, x.float().numpy())
            return channels_last(torch.from_numpy(y).to(OUTPUT_DTYPES[problem.dtype]))

        return Executor(self.name, problem, [Stage(problem.kind, run)])


def naive(problem: Problem, weights: Weights, x: Array) -> Exact:
    """Returns the layer's output (N, OC, OH, OW) in float64 for x: (N, C, H, W), nothing rounded.

    It is the naive form of the problem's stages, one after the other.
    """
    from dnnsep.codegen.layer import stages_of

    y = x.astype(np.float64)
    for stage in stages_of(problem):
        y = stage.naive(y, weights)
    return y


def error_bound(problem: Problem, weights: Weights, x: Array) -> Exact:
    """Returns how far each output of a correct backend may be from ``naive``: (N, OC, OH, OW).

    The running error bound of a sum of products (Higham, Accuracy and Stability of Numerical
    Algorithms, chapter 3): n terms accumulated in f32 in any order are off by at most
    n·u/(1 - n·u) times the sum of the absolute products, and each store in the problem's dtype
    adds one roundoff of that dtype. The stages' sums over absolute values give the scale.
    """
    from dnnsep.codegen.layer import stages_of

    scale = np.abs(x.astype(np.float64))
    error, absolute = np.zeros_like(scale), weights.absolute()
    for stage in stages_of(problem):
        scale, error = stage.bound(scale, error, absolute)
    return error
