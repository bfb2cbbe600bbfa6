"""A model prepared for all sizes of images that it is the same graph for.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from dnnsep.codegen import background
from dnnsep.codegen.generalstep import GeneralStep
from dnnsep.codegen.layerstep import LayerStep
from dnnsep.codegen.specialise import GAIN, compared
from dnnsep.graph import layout
from dnnsep.graph.sized import Memory, SizedNetwork
from dnnsep.graph.sizes import NAMES, Sizes
from dnnsep.graph.template import Template

# A size that has come so many times gets specialised kernels where they are faster. Making them
# slows other calls down by some 10 to 20 % for seconds (EfficientNet-B0 on 2 cores), and they are
# some 2 % faster: it has to come often to be worth that.
_OFTEN = 50
# The general and the specialised kernels are compared by so many calls of each.
_TURNS = 15


class Sized:
    """A model for one size of its images, by kernels that are told it.

    When the size has come often, specialised kernels are made in the background; calls then take
    turns with them until it is known whether they are faster. ``used`` is when it ran last, as
    calls are counted.
    """

    def __init__(self, unflatten: Callable[[list[Any]], Any], network: SizedNetwork) -> None:
        self.network, self.used = network, 0
        self._unflatten, self._calls, self._trial = unflatten, 0, None

    _trial: _Trial | None

    def run(self, leaves: list[Any]) -> Any:
        """Returns the model's result for arguments whose leaves these are."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._calls += 1
        if self._calls == _OFTEN:
            self._specialise()
        trial = self._trial
        if trial is None:
            return self._unflatten(self.network.run(tensors))
        outputs = trial.run(tensors)
        if trial.best is not None:
            self.network, self._trial = trial.best, None
        return self._unflatten(outputs)

    def warm_up(self, tune: bool) -> None:
        """Makes specialised kernels now, and takes those that are faster, each compared alone."""
        steps = list(self.network.steps)
        for number, step in enumerate(steps):
            if isinstance(step, GeneralStep):
                found, ratio = compared(step, tune)
                if found is not None and ratio >= 1 + GAIN:
                    steps[number] = found
        self.network, self._trial = self.network.with_steps(steps), None
        self._calls = _OFTEN

    def _specialise(self) -> None:
        """Has specialised kernels made in the background, and tries them when they are there."""
        steps = [step if isinstance(step, GeneralStep) else None for step in self.network.steps]
        own = ref(self)

        def done(made: Sequence[LayerStep | None]) -> None:
            sized = own()
            if sized is not None and any(made):
                network = sized.network
                new = [one or old for one, old in zip(made, network.steps, strict=True)]
                sized._trial = _Trial((network, network.with_steps(new)))

        background.submit(background.Job(steps, lambda: own() is not None, done))


class _Trial:
    """Two networks that do the same, by turns; the ``best`` when it is known: the second one only
    if it is faster by GAIN."""

    def __init__(self, networks: tuple[SizedNetwork, SizedNetwork]) -> None:
        self._networks = networks
        self._seconds: tuple[list[float], list[float]] = ([], [])
        self._turn = count()
        self.best: SizedNetwork | None = None

    def run(self, tensors: list[Tensor]) -> list[Any]:
        """Returns the outputs of the one whose turn it is."""
        number = next(self._turn) % 2
        start = perf_counter()
        outputs = self._networks[number].run(tensors)
        self._seconds[number].append(perf_counter() - start)
        if min(map(len, self._seconds)) >= _TURNS:
            old, new = map(median, self._seconds)
            self.best = self._networks[old > (1 + GAIN) * new]
        return outputs


@dataclass(frozen=True)
class Opened:
    """A template, the sizes that it is for, and what makes the model's result of its outputs."""

    template: Template
    sizes: Sizes
    unflatten: Callable[[list[Any]], Any]
    memory: Memory = field(default_factory=Memory)

    def at(self, x: Tensor) -> Sized | None:
        """Returns the model for images like these; None where they are none of another size of
        those that it was made for, or such that the model is another graph for them."""
        held = self.template.input
        if x.dim() != 4 or x.shape[1] != held.channels or x.dtype != held.dtype:
            return None
        images, channels, height, width = x.shape
        each = height * width
        expected = (channels * each, each, width, 1)
        if held.pitch is not None:
            expected = (each * held.pitch, 1, width * held.pitch, held.pitch)
        if any(n > 1 and s != e for n, s, e in zip(x.shape, x.stride(), expected, strict=True)):
            return None
        if not self.sizes.allows(images, height, width):
            return None
        try:
            grids = self.template.grids.of(images, height, width)
        except ValueError:  # an image is too small
            return None
        used = self.template.used(grids, torch.get_num_threads())
        return Sized(self.unflatten, SizedNetwork(self.template, grids, used, self.memory))

    def tried(self, x: Tensor) -> tuple[Opened, Tensor] | None:
        """Returns the same with random images of another size than the example ``x`` to try it
        with. What of their size cannot be another is the example's for all. None where there is no
        other size."""
        images, height, width = self.template.example
        more = (16, 32, 24, 64, 8, 2, 1)
        tries = [(images + 1, height + a, width + b) for a in more for b in more if a != b]
        tries += [(images + 1, height + a, width + a) for a in more]
        tries += [(images, height + a, width + a) for a in more]
        tries += [(images + 1, height, width)]
        size = next((size for size in tries if self.sizes.allows(*size)), None)
        if size is None:
            return None
        drawn = torch.randn((size[0], x.shape[1], *size[1:]))
        like = torch.empty_like(drawn, dtype=x.dtype, memory_format=layout.memory_format_of(x))
        same = [
            f"{name} == {one}"
            for name, one, other in zip(NAMES, self.template.example, size, strict=True)
            if one == other
        ]
        sizes = self.sizes.which(" and ".join(same) or "True")
        return replace(self, sizes=sizes), like.copy_(drawn)
