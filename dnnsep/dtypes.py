"""The dtypes of tensors and of problems: how wide, how they round, how they are stored in NumPy.

Arrays of numbers are float32 in NumPy whatever a tensor's dtype; ``stored`` gives them as they lie
in memory. How generated code reads and writes a dtype is in codegen/lang/dtype.py, what torch calls
it in backends/executor.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class TensorDtype(Protocol):
    """What the elements of a tensor are."""

    @property
    def name(self) -> str: ...

    @property
    def bytes(self) -> int: ...

    def rounded(self, values: NDArray[np.floating]) -> Array:
        """Returns the nearest values of this dtype, ties to even, as float32."""

    def stored(self, values: Array) -> NDArray[Any]:
        """Returns values that this dtype can hold as they lie in memory."""

    def loaded(self, stored: NDArray[Any]) -> Array:
        """Returns the float32 values of what ``stored`` gave."""


@dataclass(frozen=True)
class Dtype:
    """A floating-point format that is float32 with its last ``32 - 8 * bytes`` bits cut off.

    ``roundoff`` is the unit roundoff: half the distance from 1 to the next larger value.
    """

    name: str
    bytes: int
    roundoff: float

    def rounded(self, values: NDArray[np.floating]) -> Array:
        """Returns the nearest values of this dtype (ties to even; NaN and infinity as they are), as
        float32."""
        single = np.ascontiguousarray(values, dtype=np.float32)
        if self.bytes == 4:
            return single
        bits = single.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        nearest = np.where(np.isfinite(single), rounded.astype(np.uint32).view(np.float32), single)
        # A NaN with just low bits would be cut to infinity.
        return np.where(np.isnan(single), np.float32(np.nan), nearest)

    def stored(self, values: Array) -> NDArray[Any]:
        """Returns values that this dtype can hold as it stores them: float32, or the upper halves
        of their bits as uint16."""
        if self.bytes == 4:
            return values
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)

    def loaded(self, stored: NDArray[Any]) -> Array:
        """Returns the float32 values of what ``stored`` gave."""
        if self.bytes == 4:
            return stored
        values: Array = (stored.astype(np.uint32) << 16).view(np.float32)
        return values


@dataclass(frozen=True)
class ByteDtype:
    """Whole numbers of a byte, from ``low`` to ``high``; beyond them they saturate."""

    name: str
    low: int
    high: int
    bytes: int = 1

    def rounded(self, values: NDArray[np.floating]) -> Array:
        """Returns the nearest values of this dtype, ties to even, as float32."""
        nearest: Array = np.clip(np.rint(values), self.low, self.high).astype(np.float32)
        return nearest

    def stored(self, values: Array) -> NDArray[Any]:
        """Returns values that this dtype can hold as int8 or uint8."""
        return values.astype(np.int8 if self.low else np.uint8)

    def loaded(self, stored: NDArray[Any]) -> Array:
        """Returns the float32 values of what ``stored`` gave."""
        values: Array = stored.view(np.int8 if self.low else np.uint8).astype(np.float32)
        return values


F32 = Dtype("f32", bytes=4, roundoff=2.0**-24)
BF16 = Dtype("bf16", bytes=2, roundoff=2.0**-8)
U8 = ByteDtype("u8", 0, 255)
S8 = ByteDtype("s8", -128, 127)

# Those of floating point, and all that a tensor can hold.
DTYPES: dict[str, Dtype] = {dtype.name: dtype for dtype in (F32, BF16)}
TENSOR_DTYPES: dict[str, TensorDtype] = {**DTYPES, "u8": U8, "s8": S8}


@dataclass(frozen=True)
class Precision:
    """What a problem's dtype says of its tensors: what its input and its output hold.

    Where the input holds bytes the problem is quantised: its weights are s8, what is between two
    stages holds what the input does, and the sums are in int32.
    """

    name: str
    source: TensorDtype
    destination: TensorDtype

    @property
    def quantized(self) -> bool:
        return isinstance(self.source, ByteDtype)

    @property
    def between(self) -> TensorDtype:
        """What a tensor between two stages holds."""
        return self.source


def _quantized() -> list[Precision]:
    """Returns u8s8 and s8s8, whose output holds what their input does, then those whose output
    holds something else, which their names end with."""
    found = [Precision(f"{source.name}s8", source, source) for source in (U8, S8)]
    for source, destination in ((U8, S8), (U8, F32), (S8, U8), (S8, F32)):
        found.append(Precision(f"{source.name}s8{destination.name}", source, destination))
    return found


# By the dtypes of problems.
PRECISIONS: dict[str, Precision] = {
    precision.name: precision
    for precision in (*(Precision(d.name, d, d) for d in DTYPES.values()), *_quantized())
}
