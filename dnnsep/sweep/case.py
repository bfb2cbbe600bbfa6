"""What a sweep measures: a problem, a block, or a whole model, under fixed conditions.

All kinds answer the same questions, so that the loop, the node and the A/B instrument take either:
which worker module runs it, what its data is, how many operations it takes, and under which key its
record is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from dnnsep.backends import BACKENDS
from dnnsep.block import Block
from dnnsep.cost import cost
from dnnsep.measure.roofs import Roof, Roofs
from dnnsep.models.engines import ENGINES
from dnnsep.problem import Problem
from dnnsep.sweep.check import CheckData
from dnnsep.sweep.results import Cache, Key


@dataclass(frozen=True)
class Case:
    """One problem on one number of threads with hot or cold caches, to be measured on several
    backends."""

    problem: Problem
    name: str | None
    threads: int
    backends: tuple[str, ...]
    cache: Cache = "hot"

    worker: ClassVar[str] = "dnnsep.sweep.worker"

    @property
    def flops(self) -> int:
        """Floating-point operations of one call: 2 for each multiply-add."""
        return cost(self.problem).flops

    def save_data(self, path: Path) -> None:
        """Writes weights, input and expected result to ``path`` (.npz).

        Raises MemoryError where they are too large, OSError where they cannot be written.
        """
        CheckData.exact(self.problem).save(path)

    def roof(self, roofs: Roofs) -> Roof | None:
        """Returns what bounds the problem on this machine."""
        return roofs.of(self.problem, self.cache)

    def key(self, backend: str) -> Key:
        """Returns the key of a backend's record."""
        return (str(self.problem), backend, self.threads, self.cache)


@dataclass(frozen=True)
class ModelCase:
    """A model in a dtype on an input of a shape, to be measured on several engines.

    ``flops`` are 2 for each multiply-add of its convolutions and linear layers; ``dtype`` is
    ``f32``, ``bf16`` or ``int8``.
    """

    model: str
    input_shape: tuple[int, ...]
    flops: int
    threads: int
    backends: tuple[str, ...]
    dtype: str = "f32"
    cache: Cache = "hot"
    name: str | None = None

    worker: ClassVar[str] = "dnnsep.sweep.modelworker"

    @property
    def problem(self) -> str:
        """The model, its dtype unless that is f32, and its input's shape as text.

        For example ``mobilenetv2_100 1x3x224x224`` and ``mobilenetv2_100 bf16 1x3x224x224``.
        """
        return _model_text(self.model, self.dtype, self.input_shape)

    def key(self, backend: str) -> Key:
        """Returns the key of an engine's record."""
        return (self.problem, backend, self.threads, self.cache)

    def save_data(self, path: Path) -> None:
        """Writes nothing: each worker makes the same weights and input itself."""

    def roof(self, roofs: Roofs) -> Roof | None:
        """Returns None: each of a model's layers has a roof of its own."""
        return None


@dataclass(frozen=True)
class BlockCase:
    """A block on one number of threads with hot or cold caches, to be measured on several engines,
    which run it as the model that it is."""

    block: Block
    name: str | None
    threads: int
    backends: tuple[str, ...]
    cache: Cache = "hot"

    worker: ClassVar[str] = ModelCase.worker

    @property
    def problem(self) -> str:
        """The block's descriptor in f32, its dtype unless that is f32, and its input's shape."""
        model = str(replace(self.block, dtype="f32"))
        return _model_text(model, self.block.dtype, self.block.input_shape)

    @property
    def flops(self) -> int:
        """Floating-point operations of one call: 2 for each multiply-add."""
        return self.block.flops

    def key(self, backend: str) -> Key:
        """Returns the key of an engine's record."""
        return (self.problem, backend, self.threads, self.cache)

    def save_data(self, path: Path) -> None:
        """Writes nothing: each worker makes the same weights and input itself."""

    def roof(self, roofs: Roofs) -> Roof | None:
        """Returns what bounds the block on this machine, all its layers together."""
        return roofs.of_block(self.block, self.cache)


AnyCase = Case | ModelCase | BlockCase


def why_not(case: AnyCase, backend: str) -> str:
    """Returns why a backend cannot run a case, whatever its sizes; empty where it may."""
    if isinstance(case, Case):
        known = backend.partition(":")[0] in BACKENDS
        return "" if known else f"{backend} runs blocks and models, no single layers"
    return "" if backend in ENGINES else f"{backend} runs single layers, no blocks or models"


def _model_text(model: str, dtype: str, shape: tuple[int, ...]) -> str:
    of_dtype = "" if dtype == "f32" else f"{dtype} "
    return f"{model} {of_dtype}{'x'.join(map(str, shape))}"
