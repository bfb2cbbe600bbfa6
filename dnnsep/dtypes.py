"""The dtypes of problems: how wide they are, how they round, how they are stored in NumPy.

Arrays of numbers are float32 in NumPy whatever a problem's dtype; ``Dtype.stored`` gives them as
they lie in memory. How generated code reads and writes a dtype is in codegen/lang/dtype.py, what
torch calls it in backends/executor.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


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
        return (stored.astype(np.uint32) << 16).view(np.float32)


F32 = Dtype("f32", bytes=4, roundoff=2.0**-24)
BF16 = Dtype("bf16", bytes=2, roundoff=2.0**-8)

DTYPES: dict[str, Dtype] = {dtype.name: dtype for dtype in (F32, BF16)}
