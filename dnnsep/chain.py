"""Layers that follow each other, run as one. Imports torch: import it from inside functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnnsep.backends.fused_chain import FusedChain, Step
from dnnsep.backends.fused_executor import FusedExecutor
from dnnsep.codegen.choose import choose
from dnnsep.codegen.isa import this_isa
from dnnsep.layer import problem_of, weights_of
from dnnsep.module import SeparableConv2d
from dnnsep.packed import PackedConv2d, PackedLayer, Ready, Tensors, is_pointwise, runs_fused

Link = SeparableConv2d | PackedConv2d


def can_be_linked(layer: nn.Module, with_residual: bool) -> bool:
    """Whether a layer may run as a part of a chain."""
    if isinstance(layer, SeparableConv2d):  # its residual comes after the activation
        return not (with_residual and layer.activations[1] != "none")
    return isinstance(layer, PackedConv2d) and is_pointwise(layer.convolution)


class PackedChain(PackedLayer):
    """Layers each on the result of the one before: where the fused kernel has all of them, they run
    in one call.

    ``residuals``, one for each layer, are the number of an earlier layer whose result is added to
    its sums, -1 for the chain's input, None for none.
    """

    def __init__(self, layers: Sequence[Link], residuals: Sequence[int | None]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.residuals = tuple(residuals)
        self.train(layers[0].training)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        assert residual is None
        results = [x]
        for layer, source in zip(self.layers, self.residuals, strict=True):
            results.append(layer(results[-1], None if source is None else results[source + 1]))
        return results[-1]

    def tensors(self) -> Tensors:
        return tuple(tensor for layer in self._links() for tensor in layer.tensors())

    def pack(self, x: Tensor, with_residual: bool) -> Ready:
        steps = []
        like = torch.empty(x.shape, dtype=x.dtype, device="meta")
        for layer, source in zip(self._links(), self.residuals, strict=True):
            executor = _executor(layer, like)
            if executor is None:
                return Ready(x.shape, self.plain, "layer by layer")
            steps.append(Step(executor, source))
            like = torch.empty(executor.problem.output_shape, dtype=x.dtype, device="meta")
        run = FusedChain(steps).run

        def chain(x: Tensor, _: Tensor | None) -> Tensor:
            return run(x.contiguous(memory_format=torch.channels_last))

        return Ready(x.shape, chain, f"{len(steps)} layers by {steps[0].executor.impls[0]}")

    def _links(self) -> list[Link]:
        return list(self.layers)  # type: ignore[arg-type]


def _executor(layer: Link, x: Tensor) -> FusedExecutor | None:
    """The fused kernel of a layer for inputs like x, not compiled yet; None where it has none."""
    if isinstance(layer, PackedConv2d):
        parts = layer.separable(x, layer.activation)
    else:
        parts = layer.separable(x)
    if parts is None:
        return None
    problem = problem_of(x, *parts)
    if not runs_fused(problem, layer.backend):
        return None
    plan = choose(problem, this_isa(), torch.get_num_threads())
    return FusedExecutor("fused", problem, weights_of(problem, parts[0]), plan)
