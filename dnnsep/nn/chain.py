"""Layers that feed each other, run as one. Imports torch: import it from inside functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnnsep.backends.fused_executor import FusedProgram
from dnnsep.codegen.program import INPUT, Step
from dnnsep.codegen.sources import Sources
from dnnsep.nn.convolution import is_depthwise
from dnnsep.nn.memo import Tensors
from dnnsep.nn.module import SeparableConv2d
from dnnsep.nn.packed import PackedConv2d, PackedLayer, PackedLinear, Ready, rows_of


def can_be_linked(layer: nn.Module, with_residual: bool) -> bool:
    """Returns whether a layer may be linked into a chain."""
    if isinstance(layer, SeparableConv2d):  # its residual comes after the activation
        return not (with_residual and layer.activations[1] != "none")
    if isinstance(layer, PackedLinear):
        return not with_residual
    if not isinstance(layer, PackedConv2d):
        return False
    if is_depthwise(layer.convolution):
        return not with_residual
    return layer.convolution.groups == 1


def takes_rows(layer: nn.Module) -> bool:
    """Returns whether a layer's input is (..., C) and not (N, C, H, W)."""
    return isinstance(layer, PackedLinear) and not layer.pooled


def gives_rows(layer: nn.Module) -> bool:
    """Returns whether a layer's result is (..., OC) and not (N, OC, H, W)."""
    return isinstance(layer, PackedLinear)


def _fit(sources: Sources[int], likes: dict[int, Tensor], shape: torch.Size) -> bool:
    """Returns whether the residual has the result's shape and the scale a number for each channel.

    They had for the example, but images of other sizes may come out in other sizes.
    """
    if sources.residual is not None and likes[sources.residual].shape != shape:
        return False
    images = likes[sources.x].shape
    return sources.scale is None or likes[sources.scale].shape == (*images[:2], 1, 1)


class PackedChain(PackedLayer):
    """Layers, each on results of earlier ones, that run in one call where the fused kernel can run
    all of them. The result is the last one's.

    New parameters of the layers are seen by the next call; new layers in their place only after
    ``train`` or ``eval``.
    """

    def __init__(self, layers: Sequence[PackedLayer], sources: Sequence[Sources[int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.sources = tuple(sources)
        self._parameters_of: list[tuple[dict[str, nn.Parameter | None], str]] = []
        self.train(layers[0].training)

    def plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        assert residual is None
        results = {INPUT: x}
        for number, (layer, sources) in enumerate(zip(self.layers, self.sources, strict=True)):
            results[number] = layer(**{name: results[n] for name, n in sources.items()})
        return results[number]

    def tensors(self) -> Tensors:
        # Looked up through the modules only once: a call would spend 2 % of its time on that.
        if not self._parameters_of:
            self._parameters_of = [
                (child._parameters, name)
                for layer in self._links()
                for child in layer.children()
                for name in ("weight", "bias")
            ]
        return tuple([parameters[name] for parameters, name in self._parameters_of])

    def train(self, mode: bool = True) -> PackedChain:
        self._parameters_of = []
        return super().train(mode)

    def pack(self, x: Tensor, residual: Tensor | None) -> Ready:
        steps: list[Step] = []
        likes = {INPUT: torch.empty(x.shape, dtype=x.dtype, device="meta")}
        ends = {INPUT: INPUT}  # the last step of each layer
        for number, (layer, sources) in enumerate(zip(self._links(), self.sources, strict=True)):
            like = likes[sources.x]
            problems = layer.problems(like)
            if problems is None:
                return Ready(x.shape, self.plain, "layer by layer")
            steps += layer.steps(problems, sources.map(ends.__getitem__), len(steps))
            ends[number] = len(steps) - 1
            shape = torch.Size(problems[-1].output_shape)
            if isinstance(layer, PackedLinear):
                shape = layer.result_shape(like)
            likes[number] = torch.empty(shape, dtype=x.dtype, device="meta")
            if not _fit(sources, likes, shape):
                return Ready(x.shape, self.plain, "layer by layer")
        program = FusedProgram(steps)

        def chain(x: Tensor, _: Tensor | None) -> Tensor:
            return program.run(x.contiguous(memory_format=torch.channels_last))

        links = self._links()
        made = Ready(x.shape, chain, f"{len(links)} layers by {program.impl}", tuple(steps))
        if not gives_rows(links[-1]):
            return made
        return rows_of(made, likes[number].shape, takes_rows(links[0]))

    def _links(self) -> list[PackedLayer]:
        return list(self.layers)  # type: ignore[arg-type]
