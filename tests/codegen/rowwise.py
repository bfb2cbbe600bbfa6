"""Runs row-wise kernels between forbidden pages, by teams of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.rowwise.expression import Input
from dnnsep.codegen.rowwise.special import Rowwise
from dnnsep.codegen.rowwise.step import PixelReductionStep, RowwiseStep
from dnnsep.dtypes import DTYPES, Array
from tests.codegen.conftest import ISAS
from tests.codegen.pieces import JUNK, Memory
from tests.codegen.running import run_parts

VECTOR_ISAS = tuple(isa for isa in ISAS if not isa.software_tiles)


@dataclass(frozen=True)
class On:
    """Vectors and a dtype; prints itself as a test's id."""

    isa: Isa
    dtype: str

    def __str__(self) -> str:
        return f"{self.isa.name}-{self.dtype}"


# Instructions for bf16 change nothing for f32.
ONS = (
    *(On(isa, "bf16") for isa in VECTOR_ISAS),
    *(On(isa, "f32") for isa in dict.fromkeys((VECTOR_ISAS[0], VECTOR_ISAS[-1]))),
)


def shape_of(operand: Input, images: int, pixels: int, channels: int) -> tuple[int, ...]:
    """Returns the shape of an operand."""
    return {
        "pixels": (images, pixels, channels),
        "image": (images, channels),
        "channels": (channels,),
        "pixel": (images, pixels),
    }[operand.kind]


def integers(special: Rowwise, images: int, pixels: int, most: int = 4) -> list[Array]:
    """Returns small integers for each operand."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(-most, most + 1, shape_of(operand, images, pixels, special.channels)).astype(
            np.float32
        )
        for operand in special.inputs
    ]


def normals(special: Rowwise, images: int, pixels: int) -> list[Array]:
    """Returns random numbers for each operand, as its dtype can hold them."""
    rng = np.random.default_rng(0)
    return [
        DTYPES[special.dtype_of(operand)].rounded(
            rng.standard_normal(shape_of(operand, images, pixels, special.channels))
        )
        for operand in special.inputs
    ]


def step_of(
    special: Rowwise, images: int, pixels: int, apart: int = 0, threads: int = 2
) -> RowwiseStep:
    """Returns a step whose operands' rows are so many elements further apart than they are long,
    one more for each next operand and for the result."""
    pitches = [
        special.channels + (apart + number if apart else 0)
        for number in range(len(special.inputs) + 1)
    ]
    return RowwiseStep(special, images, pixels, tuple(pitches[:-1]), pitches[-1], threads)


def run(
    step: RowwiseStep, operands: Sequence[Array], at_end: bool = True, team_size: int = 2
) -> Array:
    """Returns the result, (N, P, C); nothing else was written than that."""
    special = step.special
    memories: list[Memory] = []
    for operand, pitch, values in zip(special.inputs, step.pitches, operands, strict=True):
        dtype = special.dtype_of(operand)
        if operand.kind == "pixels":
            values = spaced(values.reshape(-1, special.channels), pitch, np.float32(np.nan))
        memories.append(Memory(DTYPES[dtype].stored(values), at_end))
    rows = np.full((step.images * step.pixels, special.channels), JUNK)
    y = spaced(rows, step.y_pitch, JUNK)
    result = Memory(DTYPES[special.dtype].stored(y), at_end)
    call(step, [memory.at(0) for memory in memories], result.at(0), team_size)
    assert result.untouched
    assert all(memory.unchanged for memory in memories)
    found = rows_of(DTYPES[special.dtype].loaded(result.array), step.y_pitch, special.channels)
    return found.reshape(step.images, step.pixels, special.channels)


def call(
    step: RowwiseStep | PixelReductionStep, operands: Sequence[int], y: int, team_size: int = 2
) -> None:
    """Calls a step's kernel on addresses, by a team of so many threads."""
    size = -(-step.scratch_bytes // 64) * 64
    scratch = Memory(np.zeros(team_size * size, np.uint8), False)
    task: Any = step.task()
    for number, address in enumerate(operands):
        setattr(task, f"x{number}", address)
    task.y = y
    run_parts(step.kernel, task, step.parts, scratch.at(0), size, team_size)
    assert scratch.untouched


def spaced(rows: Array, pitch: int, between: np.float32) -> Array:
    """Returns rows so many elements apart, without anything after the last one."""
    whole = np.full((len(rows), pitch), between)
    whole[:, : rows.shape[1]] = rows
    return whole.reshape(-1)[: (len(rows) - 1) * pitch + rows.shape[1]]


def rows_of(spaced: Array, pitch: int, channels: int) -> Array:
    """Returns the rows of what ``spaced`` gave; what is between must be as it was."""
    whole = np.concatenate([spaced, np.full(pitch - channels, JUNK)]).reshape(-1, pitch)
    assert (whole[:, channels:] == JUNK).all()
    return np.ascontiguousarray(whole[:, :channels])


def check(special: Rowwise, step: RowwiseStep, operands: Sequence[Array], at_end: bool) -> None:
    """Asserts that a result is within its bound."""
    found = run(step, operands, at_end)
    error = np.abs(found - special.naive(operands))
    bound = special.bound(operands)
    assert np.isfinite(bound).all()
    assert (error <= bound).all(), f"{(error / bound).max():.2f} of the bound"


def same_bits(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Whether arrays are the same to the bit."""
    return first.tobytes() == second.tobytes()
