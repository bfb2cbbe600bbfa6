"""What becomes of sums on their way out: they are activated, or made whole numbers of a byte.

A stage's *table* is what that takes for each output channel: vectors of a number for each channel,
``rows`` of them for each vector of sums, one after the other. The first row is what sums begin
with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from dnnsep.codegen.lang.activate import activate
from dnnsep.codegen.lang.dtype import nearest
from dnnsep.codegen.lang.emit import BYTE, F32, I32, Code
from dnnsep.codegen.lang.isa import Isa
from dnnsep.codegen.lang.saturate import as_bytes
from dnnsep.codegen.stages.residual import Residual, activated
from dnnsep.dtypes import PRECISIONS, TensorDtype
from dnnsep.quantization import LIMITS, MOST_STEPS, Requantization


class Finish(ABC):
    """Emits it for vectors of sums, which are of LLVM's type ``total``."""

    rows: int
    total: ir.Type

    @abstractmethod
    def value(
        self,
        code: Code,
        total: ir.Value,
        row: Callable[[int], ir.Value],
        residual: Residual | None = None,
        load: Callable[[], ir.Value] | None = None,
    ) -> ir.Value:
        """Returns what ``Element.store`` takes of a vector of sums, in f32: ``row(n)`` reads the
        n-th of its rows of the table, and ``load`` the residual, which is added where there is
        one."""


@dataclass(frozen=True)
class FloatFinish(Finish):
    """Sums begin with the bias and are activated, ``rough`` where the result is rounded to bf16."""

    activation: str
    rough: bool
    rows = 1
    total = F32

    def value(
        self,
        code: Code,
        total: ir.Value,
        row: Callable[[int], ir.Value],
        residual: Residual | None = None,
        load: Callable[[], ir.Value] | None = None,
    ) -> ir.Value:
        return activated(code, self.activation, total, residual, load, self.rough)


@dataclass(frozen=True)
class ByteFinish(Finish):
    """Sums in int32 become what Requantization says, of an output of the dtype ``target``.

    The rows: what sums begin with, which is less what the input's zero point adds to them;
    multipliers and offsets; bytes that are the lower limit of steps, and bytes that are the upper
    one; multipliers of the residual; and the multipliers and offsets that make steps of activated
    numbers.
    """

    activation: str
    target: TensorDtype
    total = I32

    @property
    def to_bytes(self) -> bool:
        return self.target.bytes == 1

    @property
    def in_steps(self) -> bool:
        """Whether the activation is one of limits, so that the first multiply-add gives steps."""
        return self.to_bytes and self.activation in LIMITS

    @property
    def rows(self) -> int:  # type: ignore[override]
        return 3 if not self.to_bytes else 6 if self.in_steps else 8

    def table(
        self, how: Requantization, zero_point: int, weights: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Returns (rows, output channels); whole numbers of 32 bits by their bits. ``weights`` are
        (output channels, all that a sum is of)."""
        count = len(weights)
        starts = (-zero_point * weights.astype(np.float64).sum(axis=1)).astype(np.int32)
        rows: list[NDArray[np.float32]] = [starts.view(np.float32), how.multiplier, how.offset]
        for limit in how.limits:
            rows.append(np.full(4 * count, limit, np.uint8).view(np.float32))
        for number in (how.added, *how.steps):
            rows.append(np.full(count, number, np.float32))
        return np.stack(rows[: self.rows])

    def steps(
        self,
        code: Code,
        total: ir.Value,
        row: Callable[[int], ir.Value],
        load: Callable[[], ir.Value] | None = None,
    ) -> ir.Value:
        """Returns what is rounded and limited of an output in bytes; ``load`` reads the residual,
        as f32 from 0 to 255."""
        number = self._number(code, total, row)
        if load is not None:
            number = code.fma(load(), row(5), number)
        if not self.in_steps:
            number = code.fma(activate(code, self.activation, number), row(6), row(7))
        # Beyond 32 bits a conversion gives the least number, which is right of small ones only.
        most = code.splat(MOST_STEPS, number.type)
        return code.builder.select(code.builder.fcmp_ordered(">", number, most), most, number)

    def value(
        self,
        code: Code,
        total: ir.Value,
        row: Callable[[int], ir.Value],
        residual: Residual | None = None,
        load: Callable[[], ir.Value] | None = None,
    ) -> ir.Value:
        assert not self.to_bytes, "bytes are made of several vectors at a time"
        number = self._number(code, total, row)
        return activated(code, self.activation, number, residual, load, rough=False)

    def _number(self, code: Code, total: ir.Value, row: Callable[[int], ir.Value]) -> ir.Value:
        number = code.builder.sitofp(total, ir.VectorType(F32, total.type.count))
        return code.fma(number, row(1), row(2))

    def bytes(
        self,
        code: Code,
        totals: Sequence[ir.Value],
        row: Callable[[int, int], ir.Value],
        load: Callable[[int], ir.Value] | None = None,
    ) -> ir.Value:
        """Returns up to four vectors of sums as one of as many unsigned bytes; ``row(v, n)`` reads
        the n-th row of the table for the v-th vector, and ``load(v)`` its residual."""
        words = [
            nearest(code, self.steps(code, total, partial(row, v), load and partial(load, v)))
            for v, total in enumerate(totals)
        ]
        return self.limited(code, as_bytes(code, words), partial(row, 0))

    def limited(self, code: Code, value: ir.Value, row: Callable[[int], ir.Value]) -> ir.Value:
        """Returns a vector of unsigned bytes within the limits of steps; ``row(n)`` reads the n-th
        row of the table, as many bytes as there are or more."""
        b = code.builder
        for n, name in ((3, "llvm.umax"), (4, "llvm.umin")):
            read = row(n)
            limits = b.bitcast(read, ir.VectorType(BYTE, 4 * read.type.count))
            if limits.type != value.type:
                mask = ir.Constant(ir.VectorType(I32, value.type.count), None)
                limits = b.shuffle_vector(limits, limits, mask)
            value = code.intrinsic(name, value, limits)
        return value


def finish_of(activation: str, dtype: str, between: bool = False) -> Finish:
    """Returns how a stage of a problem in a dtype ends, whose output is the problem's or lies
    ``between`` its stages."""
    precision = PRECISIONS[dtype]
    if not precision.quantized:
        return FloatFinish(activation, rough=dtype == "bf16")
    return ByteFinish(activation, precision.between if between else precision.destination)


def laid_out(table: NDArray[np.float32], isa: Isa) -> NDArray[np.float32]:
    """Returns a table (rows, channels), channels being whole vectors, as it lies in memory."""
    rows, channels = table.shape
    vectors = table.reshape(rows, channels // isa.lanes, isa.lanes)
    return np.ascontiguousarray(vectors.transpose(1, 0, 2)).reshape(-1)
