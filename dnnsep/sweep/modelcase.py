"""A whole model as a case of a sweep, and its text form in results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dnnsep.measure.roofs import Roof, Roofs
from dnnsep.sweep.results import Cache, Key


@dataclass(frozen=True)
class ModelCase:
    """A model on an input of a shape, to be measured on several engines.

    ``flops`` are 2 for each multiply-add of its convolutions and linear layers.
    """

    model: str
    input_shape: tuple[int, ...]
    flops: int
    threads: int
    backends: tuple[str, ...]
    cache: Cache = "hot"
    name: str | None = None

    worker = "dnnsep.sweep.modelworker"

    @property
    def problem(self) -> str:
        return f"{self.model} {'x'.join(map(str, self.input_shape))}"

    def key(self, backend: str) -> Key:
        """The key of an engine's record."""
        return (self.problem, backend, self.threads, self.cache)

    def save_data(self, path: Path) -> None:
        """Nothing: each worker makes the same weights and input itself."""

    def roof(self, roofs: Roofs) -> Roof | None:
        """None: a model's layers have different ones."""
        return None


def parse(text: str) -> tuple[str, tuple[int, ...]]:
    """The model's name and its input's shape, of a record's ``problem``."""
    name, _, shape = text.rpartition(" ")
    return name, tuple(int(size) for size in shape.split("x"))
