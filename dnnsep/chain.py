"""Layers that follow each other, run as one. Imports torch: import it from inside functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnnsep.backends.fused_chain import FusedChain, Step
from dnnsep.backends.fused_executor import FusedExecutor
from dnnsep.module import SeparableConv2d
from dnnsep.packed import PackedConv2d, PackedLayer, PackedLinear, Ready, Tensors, flat


def can_be_linked(layer: nn.Module, with_residual: bool) -> bool:
    """Whether a layer may run as a part of a chain."""
    if isinstance(layer, SeparableConv2d):  # its residual comes after the activation
        return not (with_residual and layer.activations[1] != "none")
    if isinstance(layer, PackedLinear):
        return not with_residual
    return isinstance(layer, PackedConv2d) and layer.convolution.groups == 1


class PackedChain(PackedLayer):
    """Layers each on the result of the one before: where the fused kernel has all of them, they run
    in one call.

    ``residuals``, one for each layer, are the number of an earlier layer whose result is added to
    its sums, -1 for the chain's input, None for none.
    """

    def __init__(self, layers: Sequence[PackedLayer], residuals: Sequence[int | None]) -> None:
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
            part = layer.part(like)
            if part is None:
                return Ready(x.shape, self.plain, "layer by layer")
            steps.append(Step(FusedExecutor.chosen(*part), source))
            like = torch.empty(part.problem.output_shape, dtype=x.dtype, device="meta")
            if isinstance(layer, PackedLinear):
                like = like.flatten(1)
        run = FusedChain(steps).run

        def chain(x: Tensor, _: Tensor | None) -> Tensor:
            return run(x.contiguous(memory_format=torch.channels_last))

        what = Ready(x.shape, chain, f"{len(steps)} layers by {steps[0].executor.impls[0]}")
        return flat(what) if like.dim() == 2 else what

    def _links(self) -> list[PackedLayer]:
        return list(self.layers)  # type: ignore[arg-type]
