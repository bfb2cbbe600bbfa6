"""Attention kernels as steps of a program."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property, lru_cache

from dnnsep.codegen.heads.layout import Layout
from dnnsep.codegen.heads.part import emit_heads
from dnnsep.codegen.heads.special import Heads
from dnnsep.codegen.heads.task import TENSORS, HeadsTask, Strides
from dnnsep.codegen.lang.jit import Function, machine_code
from dnnsep.codegen.task import KERNEL
from dnnsep.codegen.version import generator
from dnnsep.host import cachefiles

# Fewer multiplications than this are not worth waking a thread for.
_PART_MULTIPLICATIONS = 1 << 18


@dataclass(frozen=True)
class HeadsStep:
    """Attention of some tensors, for a team of so many threads.

    ``biases`` has the Strides of each bias. The addresses ``q``, ``k``, ``v``, ``y``, ``bias0`` and
    ``bias1`` of a task are those of the first elements.
    """

    special: Heads
    batch: int
    heads: int
    queries: int
    keys: int
    scale: float
    q: Strides
    k: Strides
    v: Strides
    y: Strides
    threads: int
    biases: tuple[Strides, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that no tensor has."""
        if min(self.batch, self.heads, self.queries, self.keys, self.threads) < 1:
            raise ValueError(f"{self}: all sizes and threads must be at least 1")
        if len(self.biases) != self.special.biases:
            raise ValueError(f"{self}: must have the strides of {self.special.biases} biases")

    @cached_property
    def kernel(self) -> Function:
        """The compiled kernel."""
        return _compiled(self._layout)

    @property
    def multiplications(self) -> int:
        """How many products are added up, from which its time can be told."""
        depths = self.special.depth + self.special.value_depth
        return self.batch * self.heads * self.queries * self.keys * depths

    @property
    def parts(self) -> int:
        """How many threads can share the work."""
        blocks = self.batch * self.heads * self._layout.blocks(self.queries)
        return max(1, min(self.threads, blocks, self.multiplications // _PART_MULTIPLICATIONS))

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory that a part needs."""
        return self._layout.part_bytes(self.keys)

    @property
    def _layout(self) -> Layout:
        return Layout.of(self.special, self.queries)

    def task(self) -> ctypes.Structure:
        """Returns a new HeadsTask; the addresses of its operands and of its result are still 0."""
        strides = (self.q, self.k, self.v, self.y, *self.biases)
        return HeadsTask(
            batch=self.batch,
            heads=self.heads,
            queries=self.queries,
            keys=self.keys,
            parts=self.parts,
            scale=self.scale,
            **{
                f"{tensor}_{name}": stride
                for tensor, of in zip(TENSORS, strides, strict=False)
                for name, stride in vars(of).items()
            },
        )


# So many stay for the next step; one that is in use stays with its step.
@lru_cache(256)
def _compiled(layout: Layout) -> Function:
    key = f"{generator()} {layout}"
    code = cachefiles.load("kernels", key)
    if code is None:
        code = machine_code(emit_heads(layout), layout.special.isa.target)
        cachefiles.save("kernels", key, code)
    return Function(code, "run", KERNEL)
