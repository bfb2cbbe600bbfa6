"""What a sweep measures: a problem, or a whole model, under fixed conditions.

Both kinds answer the same questions, so that the loop, the node and the A/B instrument take either:
which worker module runs it, what its data is, how many operations it takes, and under which key its
record is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dnnsep.cost import cost
from dnnsep.measure.roofs import Roof, Roofs
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
        dtype = "" if self.dtype == "f32" else f"{self.dtype} "
        return f"{self.model} {dtype}{'x'.join(map(str, self.input_shape))}"

    def key(self, backend: str) -> Key:
        """Returns the key of an engine's record."""
        return (self.problem, backend, self.threads, self.cache)

    def save_data(self, path: Path) -> None:
        """Writes nothing: each worker makes the same weights and input itself."""

    def roof(self, roofs: Roofs) -> Roof | None:
        """Returns None: each of a model's layers has a roof of its own."""
        return None


AnyCase = Case | ModelCase
