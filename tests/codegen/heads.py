"""Runs attention kernels between forbidden pages, by teams of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen.heads.special import Heads
from dnnsep.codegen.heads.step import HeadsStep
from dnnsep.codegen.heads.task import Strides
from dnnsep.dtypes import DTYPES, Array
from tests.codegen.pieces import JUNK, Memory
from tests.codegen.running import run_parts


@dataclass(frozen=True, eq=False)
class Given:
    """What attention is of: q (B, H, Nq, D), k (B, H, Nk, D), v (B, H, Nk, Dv), and biases that
    broadcast to (B, H, Nq, Nk)."""

    q: Array
    k: Array
    v: Array
    scale: float
    biases: tuple[Array, ...] = field(default=())

    @property
    def all(self) -> tuple[Any, ...]:
        return self.q, self.k, self.v, self.scale, self.biases


@dataclass(frozen=True, eq=False)
class Laid:
    """A tensor of four dimensions in memory: its elements, and how far apart those of each
    dimension are."""

    flat: NDArray[Any]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, values: Array, order: Sequence[int], apart: int, between: np.float32) -> Laid:
        """Lays values out with the dimensions in an order, the last of it contiguous and each of
        the others so many elements further apart than it must be; what is between is a number."""
        strides, size = [0] * 4, 1
        for dimension in reversed(order):
            strides[dimension] = size
            size = size * values.shape[dimension] + apart
        last = sum(stride * (n - 1) for stride, n in zip(strides, values.shape, strict=True))
        laid = cls(np.full(last + 1, between), tuple(strides))
        laid.view(values.shape)[...] = values
        return laid

    def view(self, shape: tuple[int, ...]) -> Array:
        size = self.flat.itemsize
        bytes_apart = tuple(stride * size for stride in self.strides)
        return np.lib.stride_tricks.as_strided(self.flat, shape, bytes_apart)


def normals(
    batch: int, heads: int, queries: int, keys: int, special: Heads, size: float = 1.0
) -> Given:
    """Returns random numbers as the dtype can hold them, the first bias of each head, the second
    one of each batch."""
    rng, dtype = np.random.default_rng(0), DTYPES[special.dtype]

    def some(*shape: int) -> Array:
        return dtype.rounded(size * rng.standard_normal(shape))

    shapes = ((1, heads, queries, keys), (batch, 1, queries, keys))
    return Given(
        some(batch, heads, queries, special.depth),
        some(batch, heads, keys, special.depth),
        some(batch, heads, keys, special.value_depth),
        float(np.float32(special.depth**-0.5)),
        tuple(some(*shape) for shape in shapes[: special.biases]),
    )


def run(
    special: Heads,
    given: Given,
    at_end: bool = True,
    team_size: int = 2,
    threads: int = 2,
    apart: int = 0,
) -> Array:
    """Returns the result, (B, H, Nq, Dv); nothing else was written than that."""
    dtype, nan = DTYPES[special.dtype], np.float32(np.nan)
    batch, heads, queries, _ = given.q.shape
    shape = (batch, heads, queries, special.value_depth)
    y = np.full(shape, JUNK)
    # Transposed tensors as convolutions give them, the others as linear layers do.
    orders = {True: (0, 1, 3, 2), False: (0, 2, 1, 3)}
    laid = {
        name: Laid.of(
            values,
            orders[getattr(special, f"{name}_transposed")],
            apart,
            JUNK if name == "y" else nan,
        )
        for name, values in {"q": given.q, "k": given.k, "v": given.v, "y": y}.items()
    }
    for number, bias in enumerate(given.biases):
        laid[f"bias{number}"] = Laid.of(bias, (0, 1, 2, 3), apart, nan)
    memories = {name: Memory(dtype.stored(of.flat), at_end) for name, of in laid.items()}
    rows = {name: 3 if getattr(special, f"{name}_transposed") else 2 for name in "qkvy"}
    strides = {
        name: Strides(laid[name].strides[0], laid[name].strides[1], laid[name].strides[row])
        for name, row in rows.items()
    }
    biases = tuple(
        _broadcast(laid[f"bias{number}"], bias) for number, bias in enumerate(given.biases)
    )
    step = HeadsStep(
        special, batch, heads, queries, given.k.shape[2], given.scale, **strides, threads=threads,
        biases=biases,
    )  # fmt: skip
    size = -(-step.scratch_bytes // 64) * 64
    scratch = Memory(np.full(team_size * size, 0xFF, np.uint8), False)
    task: Any = step.task()
    for name, memory in memories.items():
        setattr(task, name, memory.at(0))
    run_parts(step.kernel, task, step.parts, scratch.at(0), size, team_size)
    assert scratch.untouched
    result = memories.pop("y")
    assert result.untouched
    assert all(memory.unchanged for memory in memories.values())
    found = Laid(np.ascontiguousarray(dtype.loaded(result.array)), laid["y"].strides)
    values = found.view(shape).copy()
    found.view(shape)[...] = JUNK
    assert (found.flat == JUNK).all()
    return values


def _broadcast(laid: Laid, bias: Array) -> Strides:
    return Strides(
        *(
            0 if size == 1 else stride
            for size, stride in zip(bias.shape[:3], laid.strides[:3], strict=True)
        )
    )
