"""What decides the code of an attention kernel, and what memory it needs."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.windows.task import SharedTask

# The vectors of keys that scores are computed for at once, and of a value's channels, by the number
# of the CPU's registers; with the rows of a group their sums fill the registers.
_VECTORS = {32: 4, 16: 2}
# The fewest and the most rows of a group.
_MOST_ROWS, _LEAST_ROWS = 6, 4

OPERANDS = ("q", "k", "v", "y", "mask")


class AttentionTask(SharedTask):
    """Addresses, sizes and strides, in elements, of an attention. A unit is ``groups`` groups of
    rows of queries of one head, of which each has ``blocks``.

    Keys are taken by panels of vectors, ``panels4`` of four, and so on. Of each part's scratch
    memory ``values``, ``queries`` and ``scores`` are the offsets of what does not begin it, in
    bytes; rows of scores are ``score_stride`` floats apart.
    """

    _fields_ = (
        *((name, ctypes.c_void_p) for name in OPERANDS),
        *(
            (f"{name}_{axis}", ctypes.c_int64)
            for name in OPERANDS
            for axis in ("batch", "token", "head")
        ),
        *((name, ctypes.c_int64) for name in ("heads", "query_count", "key_count")),
        *((name, ctypes.c_int64) for name in ("blocks", "groups")),
        *((f"panels{vectors}", ctypes.c_int64) for vectors in (4, 3, 2, 1)),
        *((name, ctypes.c_int64) for name in ("values", "queries", "scores", "score_stride")),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True)
class AttentionSpecial:
    """All that decides a kernel: how long queries and values are, the rows of a group, and whether
    there is a mask."""

    depth: int
    value_depth: int
    rows: int
    masked: bool
    dtype: str
    isa: Isa

    @property
    def most_vectors(self) -> int:
        """How many vectors are computed at once for all rows of a group."""
        return _VECTORS[self.isa.registers]

    @property
    def value_vectors(self) -> int:
        """How many vectors a value is."""
        return -(-self.value_depth // self.isa.lanes)


def rows_of_group(queries: int) -> int:
    """Returns how many rows a group has; the last one of a head may have fewer, and is computed as
    if it had as many."""

    def cycles(rows: int) -> int:
        """A step multiplies each row's query by four vectors, which have to be loaded first."""
        return -(-queries // rows) * (4 * rows + 2)

    return min(range(_MOST_ROWS, _LEAST_ROWS - 1, -1), key=cycles)


def panels(vectors: int, most: int) -> dict[int, int]:
    """Returns how many panels of each number of vectors all vectors are cut into: as few as there
    can be, and of nearly equal size."""
    count = -(-vectors // most)
    missing = count * most - vectors
    if missing <= count:
        sizes = [most] * (count - missing) + [most - 1] * missing
    else:
        sizes = [vectors * (n + 1) // count - vectors * n // count for n in range(count)]
    return {size: sizes.count(size) for size in range(1, most + 1)}
