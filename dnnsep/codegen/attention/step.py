"""Attention as a step of a program."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from dnnsep.codegen.attention.code import emit_attention
from dnnsep.codegen.attention.packing import query_floats
from dnnsep.codegen.attention.power import LOG2_E
from dnnsep.codegen.attention.special import (
    AttentionSpecial,
    AttentionTask,
    panels,
    rows_of_group,
)
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.jit import Function
from dnnsep.codegen.windows.task import compiled

# Multiply-adds below which a thread is not worth waking.
_PART_WORK = 64 * 1024
# The groups of rows that use a panel of keys, while that is in the L1 cache.
_GROUPS = 4
# Between the scratch memory of two parts: what the hardware fetches ahead of one thread must not be
# the other's.
_GAP_BYTES = 64 * 1024
_LINE = 64


@dataclass(frozen=True)
class Strides:
    """How many elements apart the images, tokens and heads of an operand are; what is the same for
    all of an axis has 0. Of a mask, tokens are queries."""

    batch: int
    token: int
    head: int


@dataclass(frozen=True)
class AttentionStep:
    """softmax(q kᵀ scale + mask) v of so many images and heads, for a team of so many threads.

    Queries and keys have ``depth`` elements next to each other, values and results ``value_depth``,
    and a mask's rows ``keys``. Operands: q, k, v, y, and mask where its strides are given. Where a
    mask leaves a query no key, by minus infinity, the result is NaN.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    depth: int
    value_depth: int
    scale: float
    q: Strides
    k: Strides
    v: Strides
    y: Strides
    mask: Strides | None
    dtype: str
    isa: Isa
    threads: int

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that no tensor has."""
        sizes = (self.batch, self.heads, self.queries, self.keys, self.depth, self.value_depth)
        if min(*sizes, self.threads) < 1:
            raise ValueError(f"{self}: sizes and threads must be at least 1")

    @property
    def special(self) -> AttentionSpecial:
        """All that decides the kernel."""
        rows, masked = rows_of_group(self.queries), self.mask is not None
        return AttentionSpecial(self.depth, self.value_depth, rows, masked, self.dtype, self.isa)

    @cached_property
    def kernel(self) -> Function:
        """The compiled kernel."""
        return compiled(self.special, emit_attention)

    @property
    def operations(self) -> int:
        """Multiply-adds, from which its time can be told."""
        scores = self.batch * self.heads * self.queries * self.keys
        return scores * (self.depth + self.value_depth)

    @property
    def parts(self) -> int:
        """How many threads can share the work."""
        return max(1, min(self.threads, self._units, self.operations // _PART_WORK))

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory that all threads of a call need together."""
        return self.parts * self._part_bytes

    def task(self, scratch: int) -> ctypes.Structure:
        """Returns a new AttentionTask; the addresses of its operands are still 0."""
        strides = {name: getattr(self, name) for name in ("q", "k", "v", "y", "mask")}
        values, queries, scores, _ = self._offsets
        cut = panels(self._vectors, self.special.most_vectors)
        task: ctypes.Structure = AttentionTask.of(
            scratch,
            self._units,
            self.parts,
            self._part_bytes,
            **{
                f"{name}_{axis}": getattr(of, axis)
                for name, of in strides.items()
                if of is not None
                for axis in ("batch", "token", "head")
            },
            heads=self.heads,
            query_count=self.queries,
            key_count=self.keys,
            blocks=self._blocks,
            groups=self._groups,
            **{f"panels{vectors}": count for vectors, count in cut.items()},
            values=values,
            queries=queries,
            scores=scores,
            score_stride=self._score_stride,
            scale=self.scale * LOG2_E,
        )
        return task

    @property
    def _groups(self) -> int:
        """The groups of rows of a unit."""
        return min(_GROUPS, -(-self.queries // self.special.rows))

    @property
    def _blocks(self) -> int:
        """The units of a head."""
        return -(-self.queries // (self.special.rows * self._groups))

    @property
    def _units(self) -> int:
        return self.batch * self.heads * self._blocks

    @property
    def _vectors(self) -> int:
        """The vectors of a head's keys."""
        return -(-self.keys // self.isa.lanes)

    @property
    def _score_stride(self) -> int:
        """Whole lines, and not as many as would put rows into the same places of the L1 cache."""
        return self._vectors * self.isa.lanes + _LINE // 4

    @property
    def _offsets(self) -> tuple[int, int, int, int]:
        """Where packed values, queries and scores begin in a part's scratch memory, and its end;
        the keys are first."""
        special, lanes = self.special, self.isa.lanes
        rows = special.rows * self._groups
        floats = (
            self._vectors * lanes * self.depth,
            self.keys * special.value_vectors * lanes,
            rows * query_floats(special),
            rows * self._score_stride,
        )
        values, queries, scores, end = accumulate(-(-4 * n // _LINE) * _LINE for n in floats)
        return values, queries, scores, end

    @property
    def _part_bytes(self) -> int:
        return self._offsets[-1] + _GAP_BYTES
