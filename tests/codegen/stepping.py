"""Runs steps of a program between forbidden pages, by teams of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.step import Step
from dnnsep.codegen.windows.poolstep import PoolStep
from dnnsep.codegen.windows.resizestep import ResizeStep
from dnnsep.dtypes import TENSOR_DTYPES, Array
from tests.codegen.conftest import ISAS
from tests.codegen.pieces import JUNK, Memory
from tests.codegen.running import run_parts

NAN = np.float32(np.nan)


@dataclass(frozen=True)
class On:
    """Vectors and a dtype; prints itself as a test's id."""

    isa: Isa
    dtype: str

    def __str__(self) -> str:
        return f"{self.isa.name}-{self.dtype}"


_VECTORS = tuple(isa for isa in ISAS if not isa.software_tiles)
# Instructions for bf16 change nothing for f32.
ONS = (
    *(On(isa, "bf16") for isa in _VECTORS),
    *(On(isa, "f32") for isa in dict.fromkeys((_VECTORS[0], _VECTORS[-1]))),
)


def call(step: Step, operands: dict[str, int], team_size: int = 2) -> None:
    """Calls a step's kernel on addresses, by a team of so many threads; its scratch memory is
    junk before."""
    size = -(-step.scratch_bytes // 64) * 64
    junk = np.full(team_size * size // 4, JUNK)
    scratch = Memory(junk.view(np.uint8), at_end=True)
    task: Any = step.task()
    for name, address in operands.items():
        setattr(task, name, address)
    run_parts(step.kernel, task, step.parts, scratch.at(0), size, team_size)
    assert scratch.untouched


def run_images(
    step: PoolStep | ResizeStep, x: Array, at_end: bool = True, team_size: int = 2
) -> Array:
    """Returns the result, (N, OH, OW, C), of images, (N, H, W, C); what is between pixels is not
    a number before, and junk in the result as it was."""
    shape = (step.images, *step.output_size, step.channels)
    junk = _junk(step.dtype)
    between = NAN if junk == JUNK else junk  # bytes are always numbers
    image = spread(x, step.x_pitch, between, step.dtype, at_end)
    y = spread(np.full(shape, junk), step.y_pitch, junk, step.dtype, at_end)
    call(step, {"x": image.at(0), "y": y.at(0)}, team_size)
    assert y.untouched
    assert image.unchanged
    return gathered(y, shape, step.y_pitch, step.dtype)


def _junk(dtype: str) -> np.float32:
    """Returns a number that the dtype holds and that no result has to be."""
    return JUNK if TENSOR_DTYPES[dtype].bytes > 1 else np.float32(99)


def spread(pixels: Array, pitch: int, between: np.float32, dtype: str, at_end: bool) -> Memory:
    """Returns (..., C) as pixels so many elements apart, without anything after the last one."""
    rows = pixels.reshape(-1, pixels.shape[-1])
    whole = np.full((len(rows), pitch), between)
    whole[:, : rows.shape[1]] = rows
    used = whole.reshape(-1)[: (len(rows) - 1) * pitch + rows.shape[1]]
    return Memory(TENSOR_DTYPES[dtype].stored(used), at_end)


def gathered(memory: Memory, shape: tuple[int, ...], pitch: int, dtype: str) -> Array:
    """Returns the pixels of what ``spread`` gave; what is between must still be junk."""
    channels = shape[-1]
    used = TENSOR_DTYPES[dtype].loaded(memory.array)
    junk = _junk(dtype)
    whole = np.concatenate([used, np.full(pitch - channels, junk)]).reshape(-1, pitch)
    assert (whole[:, channels:] == junk).all()
    return np.ascontiguousarray(whole[:, :channels]).reshape(shape)
