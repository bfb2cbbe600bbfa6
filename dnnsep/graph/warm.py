"""Makes an optimized model ready for sizes of its images before they come: ``dnnsep.warm_up``.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnnsep.graph.runner import Runner


def warm_up(
    model: nn.Module, shapes: Iterable[Sequence[int] | Tensor | tuple[Any, ...]], tune: bool = True
) -> None:
    """Prepares a model that ``dnnsep.optimize`` returned for each of some inputs, so that their
    first calls are as fast as later ones.

    ``shapes`` are shapes, for a model of one f32 tensor, tensors, or tuples of arguments. Where
    one network runs all sizes of images, this is what makes specialised kernels for these: each
    layer's is compared with the one that is told the size, alone, and taken where it is faster by
    2 %; with ``tune`` its plan may be measured, too, unless DNNSEP_TUNE=0 forbids it. It takes
    about a second for each layer that was not compared on this CPU before, and measures: nothing
    else should run meanwhile.

    Raises ValueError for a model that is not one of ``optimize``'s, or is in training mode.
    """
    runner = model.__dict__.get("forward")
    if not isinstance(runner, Runner):
        raise ValueError("model: is not one that dnnsep.optimize returned and runs as a whole")
    if any(module.training for module in model.modules()):
        raise ValueError("model: is in training mode, call eval() first")
    with torch.no_grad():
        for shape in shapes:
            runner.warm_up(_arguments(shape), tune)


def _arguments(shape: Sequence[int] | Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(shape, Tensor):
        return (shape,)
    if all(isinstance(size, int) for size in shape):
        return (torch.zeros(tuple(shape)),)
    return tuple(shape)
